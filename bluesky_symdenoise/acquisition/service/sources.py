"""Sources of documents for a service: 0MQ and Kafka; Tiled's own streaming is in `tiled_source`.

Nothing here unpickles what comes from the network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from bluesky_symdenoise.acquisition.runs.frames import AnnouncedFrames, FrameSource

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Seconds without a document after which a source yields None, so that its reader can do other work.
IDLE_S = 0.5


class DocumentSource(Protocol):
    """Documents of runs, in order within each run; a document may come twice."""

    def __iter__(self) -> Iterator[tuple[str, Document] | None]:
        """Yield (name, document) pairs without end; None if there is nothing for a moment."""
        ...

    def frames(self, descriptor: Document) -> FrameSource:
        """Return the source from which the frames of a stream are read."""
        ...

    def waiting(self) -> int:
        """Return how many documents or updates wait, as far as that is known."""
        ...

    def settled(self, uid: str) -> None:
        """Take note that a raw run need not be given again: its derived run is written here or by another process."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


def packed(doc: Document) -> bytes:
    """Pack a document in msgpack as bluesky-kafka does: the serializer for ``bluesky.callbacks.zmq.Publisher``."""
    import msgpack
    import msgpack_numpy

    packed: bytes = msgpack.packb(doc, default=msgpack_numpy.encode)
    return packed


def unpacked(message: bytes) -> Any:
    """Unpack a message of `packed`. Arrays of objects, which msgpack-numpy would unpickle, are refused.

    Raises
    ------
    ValueError
        If the message is not msgpack, or holds such an array.
    """
    import msgpack

    return msgpack.unpackb(message, object_hook=_array)


def _array(packed: dict[Any, Any]) -> Any:
    """Decode msgpack-numpy's arrays and scalars, without its branch for pickled objects."""
    if b"nd" not in packed:
        return packed
    described = packed[b"type"]
    if packed.get(b"kind") or not isinstance(described, str):
        raise ValueError("an array of objects or of records, which is not accepted from the network")
    flat = np.frombuffer(packed[b"data"], np.dtype(described))
    return flat.reshape(packed[b"shape"]) if packed[b"nd"] else flat[0]


class ZmqSource:
    """Documents that a ``bluesky.callbacks.zmq.Publisher(..., serializer=packed)`` sends to a 0MQ proxy.

    0MQ drops what a slow reader cannot take; the sweep finds what is then missing. The publisher's default,
    pickle, is refused.

    Parameters
    ----------
    address
        Address of the proxy's out port, ``127.0.0.1:5568``.
    prefix
        Take messages with this prefix only, if given.
    """

    def __init__(self, address: str, *, prefix: bytes = b"") -> None:
        import zmq

        self._prefix = prefix
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, prefix)
        # 0 would mean no limit. With this one memory stays bounded, and the sweep finds runs whose documents were
        # dropped.
        self._socket.setsockopt(zmq.RCVHWM, 10_000)
        self._socket.connect(address if "://" in address else f"tcp://{address}")

    def __iter__(self) -> Iterator[tuple[str, Document] | None]:
        while True:
            if not self._socket.poll(int(IDLE_S * 1000)):
                yield None
                continue
            prefix, _, rest = self._socket.recv().partition(b" ")
            name, _, body = rest.partition(b" ")
            if self._prefix and prefix != self._prefix:
                continue
            yield _pair(name.decode(errors="replace"), body, where="0MQ")

    def frames(self, descriptor: Document) -> FrameSource:
        """Return the frames in the files that the documents announce."""
        return AnnouncedFrames(descriptor)

    def waiting(self) -> int:
        """Return 0: 0MQ does not say."""
        return 0

    def settled(self, uid: str) -> None:
        """Do nothing: 0MQ gives nothing twice."""

    def close(self) -> None:
        """Disconnect."""
        self._socket.close(linger=0)
        self._context.term()


def _pair(name: str, body: bytes, *, where: str) -> tuple[str, Document] | None:
    """Return the document, or log a line and return None: one bad message must not end the service."""
    try:
        doc = unpacked(body)
        if not isinstance(doc, dict):
            raise ValueError(f"a {type(doc).__name__}")
    except Exception as error:
        log.error(
            "%s: %r is not a document in msgpack and is ignored (%s); pickle is never accepted", where, name[:20], error
        )
        return None
    return name, doc


class KafkaSource:
    """Documents from a Kafka topic, as bluesky-kafka's publisher writes them: (name, document) in msgpack.

    At least once: an offset is committed when the derived runs of all runs that began before it are written, so that
    a service that was killed is given its unfinished runs again, from their start documents.

    Parameters
    ----------
    servers
        ``bootstrap.servers`` of the cluster.
    topic, group
        Topic to read and consumer group that remembers how far.
    options
        Further settings of librdkafka, such as those for security.
    """

    def __init__(
        self, servers: str, topic: str, *, group: str = "symdenoise", options: dict[str, Any] | None = None
    ) -> None:
        from confluent_kafka import Consumer

        self._consumer = Consumer(
            {
                **(options or {}),
                "bootstrap.servers": servers,
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        self._topic = topic
        self._consumer.subscribe([topic])
        #: Offset at which each open run began, and the next offset to be read of each partition.
        self._began: dict[str, tuple[int, int]] = {}
        self._next: dict[int, int] = {}

    def __iter__(self) -> Iterator[tuple[str, Document] | None]:
        while True:
            message = self._consumer.poll(IDLE_S)
            if message is None:
                yield None
                continue
            if message.error():
                # librdkafka retries by itself.
                log.error("Kafka, topic %s: %s", self._topic, message.error().str())
                yield None
                continue
            partition, offset = message.partition(), message.offset()
            self._next[partition] = offset + 1
            try:
                name, doc = unpacked(message.value())
            except Exception as error:
                log.error(
                    "Kafka, topic %s: message %d is not (name, document) in msgpack and is ignored (%s)",
                    self._topic,
                    offset,
                    error,
                )
                yield None
                continue
            if name == "start":
                self._began.setdefault(doc["uid"], (partition, offset))
            yield name, doc

    def frames(self, descriptor: Document) -> FrameSource:
        """Return the frames in the files that the documents announce."""
        return AnnouncedFrames(descriptor)

    def waiting(self) -> int:
        """Return how many messages in the topic were not read yet, as far as the brokers have reported."""
        from confluent_kafka import TopicPartition

        behind = 0
        for partition, position in self._next.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
            behind += max(0, high - position)
        return behind

    def settled(self, uid: str) -> None:
        """Commit the messages that no open run needs any more."""
        from confluent_kafka import TopicPartition

        partition = self._began.pop(uid, (None, 0))[0]
        if partition is None:
            return
        offset = min((at for where, at in self._began.values() if where == partition), default=self._next[partition])
        self._consumer.commit(offsets=[TopicPartition(self._topic, partition, offset)], asynchronous=False)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()
