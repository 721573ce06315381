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
        """Adds text → (thoughts, words) that are certain by now; with `final` all but calls."""
        self.held += text
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

    def finish(self):
        """(thoughts, words, [(name, arguments as JSON)]) that are left; a call that is none stays text."""
        thoughts, words = self.push("", final=True)
        calls = []

        def take(found):
            call = call_in(found[1])
            if call is None:
                return found[0]
            arguments = call["arguments"]
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append((call["name"], text))
            return ""

        return thoughts, words + self.CALL.sub(take, self.held), calls
