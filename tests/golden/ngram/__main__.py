from __future__ import annotations

import subprocess

from tests.golden.ngram import CASES, sentences

for case in CASES:
    text = "".join(" ".join(words) + "\n" for words in sentences(case.language, case.unit, case.utterances))
    command = ["lmplz", "-o", str(case.order), "--discount_fallback", "--arpa", str(case.path)]
    subprocess.run(command, input=text.encode(), check=True)
