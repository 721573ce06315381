"""A model's words → what a chat answer is made of, while they are written: thoughts, text, calls of tools."""

import json
import re

from inference.text import undecided
from model.chat import call_in


class AnswerText:
    """A chat answer while it is written: thoughts and words come out at once, calls when they are complete.

    The inverse of what the chat template writes (model/chat.py: answer_parts), for text that comes in pieces.

    Args:
        tools: whether calls are looked for.
    """

    CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>\s*", re.DOTALL)

    def __init__(self, tools):
        self.tools, self.held, self.place = tools, "", "beginning"

    def push(self, text, final=False):
        """Adds text → (thoughts, words, calls) that are certain by now; `final`: nothing more comes.

        Calls are (name, arguments as JSON) each and come at the end, all together; one that is no JSON stays text.
        """
        self.held += text
        thoughts, words = self._thoughts_and_words(final)
        if not final:
            return thoughts, words, []
        rest, calls = self._calls()
        return thoughts, words + rest, calls

    def _thoughts_and_words(self, final):
        thoughts = ""
        if self.place == "beginning":
            if not final and "<think>\n".startswith(self.held):
                return "", ""
            self.place = "thoughts" if self.held.startswith("<think>") else "words"
            if self.place == "thoughts":
                self.held = self.held.removeprefix("<think>").removeprefix("\n")
        if self.place == "thoughts":
            thoughts, end, rest = self.held.partition("</think>")
            if not end and not final:
                return self._release(len(self.held) - undecided(self.held, ("\n</think>", "</think>"))), ""
            self.place, thoughts, self.held = "between", thoughts.removesuffix("\n"), rest
        if self.place == "between":
            if not final and "\n\n".startswith(self.held):
                return thoughts, ""
            self.place, self.held = "words", self.held.removeprefix("\n\n")
        if not self.tools:
            return thoughts, self._release(len(self.held))
        at = self.held.find("<tool_call>")
        return thoughts, self._release(at if at >= 0 else len(self.held) - undecided(self.held, ("<tool_call>",)))

    def _release(self, count):
        """Takes so many characters out of what is held."""
        ready, self.held = self.held[:count], self.held[count:]
        return ready

    def _calls(self):
        """What is held → (the text between and around the calls, the calls)."""
        calls = []

        def take(found):
            call = call_in(found[1])
            if call is None:
                return found[0]
            arguments = call["arguments"]
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append((call["name"], text))
            return ""

        return self.CALL.sub(take, self.held), calls
