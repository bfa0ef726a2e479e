"""Runs Python's own tests and prints one line for each: `@@RESULT outcome id`.

    unittest_results.py MODULE... [-- ID...]

Each test has half a minute: a hanging one ends its process, and another process goes on with the rest.
"""
import faulthandler
import os
import sys
import unittest

LIMIT = 30

# They wait for a peer that a machine without a hypervisor does not have.
EXCLUDED = "VSOCK"


def tests_of(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


class Recorder(unittest.TestResult):
    """Writes what becomes of each test at once: the process may not live to the end."""

    def __init__(self, records):
        super().__init__()
        self.records = records

    def record(self, word, test):
        os.write(self.records, f"{word} {test.id()}\n".encode())

    def startTest(self, test):
        super().startTest(test)
        self.outcome = "passed"
        self.record("started", test)
        faulthandler.dump_traceback_later(LIMIT, exit=True)

    def stopTest(self, test):
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        self.record(self.outcome, test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.outcome = "skipped"

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.outcome = "failed"
        print(self.failures[-1][1], flush=True)

    def addError(self, test, error):
        super().addError(test, error)
        self.outcome = "failed"
        print(self.errors[-1][1], flush=True)
        # An error outside a test, as of setUpClass, has no stopTest.
        if not isinstance(test, unittest.TestCase):
            self.record("failed", test)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.outcome = "failed"
            print((self.failures + self.errors)[-1][1], flush=True)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.outcome = "failed"


def run(module, chosen, done, records):
    """Runs what is left of a module's tests, in this process."""
    from test import support

    # No network but this machine's, nothing large: what regrtest allows without -u.
    support.use_resources = {}
    suite = unittest.defaultTestLoader.loadTestsFromName(module)
    wanted = [test for test in tests_of(suite) if EXCLUDED not in test.id() and (not chosen or test.id() in chosen)]
    left = [test for test in wanted if test.id() not in done]
    unittest.TestSuite(left).run(Recorder(records))


def read(records):
    """The outcome of each test that was started; None where it has not ended."""
    outcomes = {}
    with open(records) as lines:
        for line in lines:
            word, _, name = line.rstrip("\n").partition(" ")
            outcomes[name] = None if word == "started" else word
    return outcomes


def main():
    arguments = sys.argv[1:]
    modules, chosen = arguments, set()
    if "--" in arguments:
        split = arguments.index("--")
        modules, chosen = arguments[:split], set(arguments[split + 1:])
    for module in modules:
        records = os.path.join(os.environ["TMPDIR"], f"records-{module}")
        open(records, "w").close()
        while True:
            done = read(records)
            pid = os.fork()
            if pid == 0:
                run(module, chosen, done, os.open(records, os.O_WRONLY | os.O_APPEND))
                os._exit(0)
            os.waitpid(pid, 0)
            hung = [name for name, outcome in read(records).items() if outcome is None]
            with open(records, "a") as file:
                for name in hung:
                    print("hung", name)
                    file.write(f"failed {name}\n")
            if not hung:
                break
        for name, outcome in read(records).items():
            print(f"@@RESULT {outcome} {name}", flush=True)


main()
