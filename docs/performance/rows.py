"""Turns what `drystone bench offline --json` prints, a line a run, into the rows of h200.json.

    python3 rows.py COMMIT < lines > rows.json

The base of a shape is taken from its first run. A row has the time of a step (decode) or tokens per
second (prefill), and the floor that memory bandwidth sets.
"""

import datetime
import json
import sys


def row(run, commit):
    """One row of the table."""
    prefill = run["phase"] == "prefill"
    return {
        "shape": run["shape"],
        "lora_kind": run["lora_kind"] or "off",
        "lora_rank": run["lora_rank"] or 0,
        "adapters": run["adapters"],
        "batch": run["batch"],
        "tpot_ms": None if prefill else round(run["step_ms"], 3),
        "prefill_tok_s": round(run["tokens_per_s"]) if prefill else None,
        "floor_ms": round(run["floor_ms"], 2),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
    }


def main():
    based, base, adapted = set(), [], []
    for line in sys.stdin:
        runs = json.loads(line)
        shape = runs[0]["shape"]
        for run in runs:
            if run["lora_kind"]:
                adapted.append(row(run, sys.argv[1]))
            elif shape not in based:
                base.append(row(run, sys.argv[1]))
        based.add(shape)
    print("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in base + adapted) + "\n]")


if __name__ == "__main__":
    main()
