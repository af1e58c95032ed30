"""Scores replicas by their load, with a discount for a cached prompt."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.plugin import Description, Setup

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"prefix": {"type": "number", "default": 4.0}},
}

prefix_weight = 4.0


class Plugin(exports.Plugin):
    def describe(self):
        return Description("load-router-py", "0.1.0", json.dumps(SCHEMA), [])

    def init(self, config):
        global prefix_weight
        settings = json.loads(config)
        unknown = settings.keys() - {"prefix"}
        if unknown:
            raise Err(f"config: unknown field `{unknown.pop()}`, expected `prefix`")
        prefix_weight = float(settings.get("prefix", prefix_weight))
        return Setup(0)

    def self_test(self):
        pass


class ScoreReplicas(exports.ScoreReplicas):
    def score_replicas(self, demand, replicas):
        rows = range(0, len(replicas.numbers), replicas.columns)
        return [score(*replicas.numbers[row : row + 6]) for row in rows]


def score(running, waiting, kv_used, adapter_resident, prefix_hit, local):
    return running + waiting + 8.0 * kv_used + prefix_weight * (1.0 - prefix_hit)
