"""Documents from 0MQ and Kafka: whole, in order, never unpickled, and given again until they were worked off."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from event_model import compose_run
from servers import stopped_at_the_end

from bluesky_symdenoise.acquisition.service.sources import KafkaSource, ZmqSource, packed, unpacked

zmq_callbacks = pytest.importorskip("bluesky.callbacks.zmq")
confluent_kafka = pytest.importorskip("confluent_kafka")

pytestmark = pytest.mark.process


#: The mock cluster waits for the session of a consumer that left before it lets the next one in.
QUICK = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000}


class Bomb:
    """Sets a flag when it is unpickled."""

    exploded = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "exploded", True))


def run_documents() -> list[tuple[str, dict[str, Any]]]:
    run = compose_run()
    key = {"source": "test", "dtype": "array", "shape": [2, 3], "dtype_numpy": "<f8"}
    stream = run.compose_descriptor(name="primary", data_keys={"det": key})
    image = np.arange(6.0).reshape(2, 3)
    event = stream.compose_event(data={"det": image}, timestamps={"det": 1.0}, seq_num=1)
    return [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        ("event", event),
        ("stop", run.compose_stop()),
    ]


def taken(source: Any, n: int) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    deadline = time.monotonic() + 60
    for item in source:
        found += [item] if item else []
        if len(found) == n:
            return found
        assert time.monotonic() < deadline, f"{len(found)} of {n} documents came"
    raise AssertionError("the source ended")


class TestPacking:
    def test_arrays_come_back(self) -> None:
        doc = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3), "b": np.float32(2.5), "nd": True}
        again = unpacked(packed(doc))
        np.testing.assert_array_equal(again["a"], doc["a"])
        assert (again["a"].dtype, again["b"], again["nd"]) == (np.uint16, np.float32(2.5), True)

    def test_nothing_is_unpickled(self) -> None:
        """Control: msgpack-numpy's own decoder would."""
        poisoned = packed({"a": np.array([Bomb()], dtype=object)})
        with pytest.raises(ValueError, match="not accepted from the network"):
            unpacked(poisoned)
        assert not Bomb.exploded
        with pytest.raises(ValueError, match=r"extra data|Unpack|0x80"):
            unpacked(pickle.dumps({"a": 1}))


PROXY = """
from bluesky.callbacks.zmq import Proxy

proxy = Proxy(in_address="127.0.0.1", out_address="127.0.0.1")
print(proxy.in_port, proxy.out_port, flush=True)
proxy.start()
"""


@pytest.fixture
def proxy() -> Iterator[list[str]]:
    """Addresses of a 0MQ proxy's in and out ports, free ones of 127.0.0.1."""
    process = subprocess.Popen([sys.executable, "-c", PROXY], stdout=subprocess.PIPE)
    with stopped_at_the_end(process), process.stdout as said:  # type: ignore[union-attr]
        yield said.readline().decode().split()


def test_zmq_documents_pass_and_pickles_do_not(proxy: list[str]) -> None:
    into, out = proxy
    source = ZmqSource(out)
    good = zmq_callbacks.Publisher(into, serializer=packed)
    # Pickled by the serializer: the publisher's own deep copy would set the bomb off here.
    bad = zmq_callbacks.Publisher(into, serializer=lambda doc: pickle.dumps({"uid": Bomb()}))
    # A subscription takes a moment to reach the publishers; what they send before is dropped.
    time.sleep(1)
    documents = run_documents()
    bad("start", {})
    for name, doc in documents:
        good(name, doc)
    got = taken(source, len(documents))
    assert [name for name, _ in got] == [name for name, _ in documents]
    np.testing.assert_array_equal(got[2][1]["data"]["det"], documents[2][1]["data"]["det"])
    assert not Bomb.exploded
    for each in (good, bad, source):
        each.close()


def test_kafka_gives_an_unfinished_run_again_and_a_settled_one_not() -> None:
    """On the mock cluster inside librdkafka; no other broker was tried."""
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "unused"})
    servers = ",".join(str(broker) for broker in producer.list_topics(timeout=10).brokers.values()).split("/")[0]
    one, other = run_documents(), run_documents()
    for name, doc in [*one, *other[:2]]:
        producer.produce("bluesky", packed((name, doc)), partition=0)
    producer.flush(10)

    first = KafkaSource(servers, "bluesky", options=QUICK)
    assert [name for name, _ in taken(first, 6)] == [name for name, _ in [*one, *other[:2]]]
    first.close()

    second = KafkaSource(servers, "bluesky", options=QUICK)
    again = taken(second, 6)
    assert again[0][1]["uid"] == one[0][1]["uid"]
    second.settled(one[0][1]["uid"])
    second.close()

    third = KafkaSource(servers, "bluesky", options=QUICK)
    (start, _) = taken(third, 2)
    assert start[1]["uid"] == other[0][1]["uid"]
    third.close()
