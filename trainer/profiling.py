"""Where the time of a step goes: --profile N."""

import contextlib

import torch

WARM_UP = 3  # steps that are not looked at: compiling, first allocations
ROWS = 10  # operations shown


class Profiler:
    """Traces cfg.profile steps of a run's main rank, once it is warm, and says what they spent their time on."""

    def __init__(self, run):
        self.run, self.left = run, run.cfg.profile if run.runtime.is_main else 0
        self.before, self.profile = WARM_UP, None

    @contextlib.contextmanager
    def step(self):
        """A context around one optimizer step."""
        if not self.left:
            yield
            return
        if self.before:
            self.before -= 1
            yield
            return
        if self.profile is None:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            kinds += [torch.profiler.ProfilerActivity.CUDA] if self.run.runtime.device.type == "cuda" else []
            self.profile = torch.profiler.profile(activities=kinds, acc_events=True)
            self.profile.start()
        yield
        self.left -= 1
        if not self.left:
            self.tell()

    def tell(self):
        """Writes the trace and prints the table, once; also of fewer steps than asked for, if the run is over."""
        if self.profile is None:
            if self.left:
                self.run.runtime.say(f"no profile: the run ended within the {WARM_UP} steps in which it warms up")
            return
        self.profile.stop()
        self.left, profile, self.profile = 0, self.profile, None
        path = self.run.path.with_name(f"{self.run.path.stem}_trace.json.gz")
        profile.export_chrome_trace(str(path))
        where = "cuda" if self.run.runtime.device.type == "cuda" else "cpu"
        averages = profile.key_averages()
        table = averages.table(sort_by=f"self_{where}_time_total", row_limit=ROWS, max_name_column_width=48)
        self.run.runtime.say(f"{table}\ntrace     {path}; open it at https://ui.perfetto.dev")
