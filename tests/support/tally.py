"""Adds up JUnit reports (ctest's and pytest's) and prints `N passed, N failed, N skipped` last.

Lists every reason for skipping once, with its count, so that a skipped test is never silent.
Exits 1 when a test failed, or when none ran.
"""

import collections
import re
import sys
import xml.etree.ElementTree as xml

passed = failed = 0
reasons = collections.Counter()
for path in sys.argv[1:]:
    for case in xml.parse(path).getroot().iter("testcase"):
        skipped = case.find("skipped")
        status = case.get("status")  # ctest's: run, fail, notrun, disabled
        if skipped is not None or status in ("notrun", "disabled"):
            text = "\n".join(case.itertext())
            reason = (skipped.get("message") or "") if skipped is not None else ""
            said = re.search(r"\bSkipped(?:\n|: )\s*([^\n]+)", text)  # GoogleTest's way
            reasons[said.group(1).strip() if said else reason or "no reason given"] += 1
        elif case.find("failure") is not None or case.find("error") is not None or status == "fail":
            failed += 1
            print(f"FAILED {case.get('classname')}.{case.get('name')}")
        else:
            passed += 1

for reason, count in reasons.most_common():
    print(f"skipped {count}: {reason}")
print(f"{passed} passed, {failed} failed, {sum(reasons.values())} skipped")
sys.exit(1 if failed or not passed else 0)
