"""Nodes that Ray's autoscalers start and end on this machine, and that know their type as a cloud's nodes do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

NODE_TYPE_VARIABLE = "RAY_NODE_TYPE_NAME"  # of which Ray makes the label of a node


class FakeNodes(FakeMultiNodeProvider):  # type: ignore[misc]  # Ray's provider has no types
    """Ray's own fake nodes take the variables of the head, in whose process they are started."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Mapping[str, str], *arguments: Any
    ) -> None:
        with self.lock:
            of_head = os.environ.get(NODE_TYPE_VARIABLE)
            if of_head:  # version 2: version 1 tells no node its type
                os.environ[NODE_TYPE_VARIABLE] = tags[TAG_RAY_USER_NODE_TYPE]
            try:
                super()._create_node_with_resources_and_labels(node_config, tags, *arguments)
            finally:
                if of_head:
                    os.environ[NODE_TYPE_VARIABLE] = of_head
