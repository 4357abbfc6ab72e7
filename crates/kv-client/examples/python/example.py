#!/usr/bin/env python3
"""Quorate without its Rust library: both kinds of namespaces, with nothing but the protocol files.

docs/how-to/use-another-language.md says how the stubs are made and why things are done this way. Then:

    PYTHONPATH=stubs python3 crates/kv-client/examples/python/example.py 127.0.0.1:7101

The addresses are those of one or more nodes. The first half of this file is a client that a program could
use from one thread; the second half shows it at work.
"""

import os
import random
import sys
import time

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from quorate.admin.v1 import admin_pb2, admin_pb2_grpc
from quorate.v1 import kv_pb2, kv_pb2_grpc

# Seconds for an operation with all its attempts, and the least that an attempt gets.
DEADLINE, SHORTEST = 5.0, 0.05
# Seconds between attempts: a random part of a step that doubles each time.
FIRST_PAUSE, LONGEST_PAUSE = 0.025, 1.0
# Attempts of one operation.
ATTEMPTS = 20
# A client id that rested for so many seconds is given up. The servers forget it after ten minutes.
REST = 300.0

# Not applied, and another node or a later moment may serve.
TRY_AGAIN = {
    "NOT_LEADER", "NO_QUORUM", "QUORUM_NOT_MET", "NOT_READY", "SHUTTING_DOWN", "OVERLOADED",
    "LIMIT_REQUESTS", "LIMIT_HINTS", "WRONG_EPOCH", "WRONG_GROUP", "WRONG_NODE", "CONNECTION_LOST",
}
# It is not known whether it was applied: only the same request, with the same id, may be sent again.
RESEND = {"PARTIAL_WRITE", "RESULT_UNKNOWN", "CONNECTION_LOST"}


class Failure(Exception):
    """A call that failed: why, and whether it was applied (`no` or `unknown`)."""

    def __init__(self, reason, applied, message, details, retry_after):
        super().__init__(f"{message} ({reason}, applied: {applied})")
        self.reason, self.applied, self.message = reason, applied, message
        self.details, self.retry_after = details, retry_after

    @classmethod
    def of(cls, error, writes):
        """Reads the details of a status. One without ours comes from gRPC itself, as when a connection
        breaks: whatever its code says, the request may have arrived. A read applies nothing."""
        reason, details, retry_after = "CONNECTION_LOST", {}, 0.0
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == "quorate":
                reason, details = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        message = f"{error.code().name}: {error.details()}"
        applied = details.get("applied", "unknown") if writes else "no"
        return cls(reason, applied, message, details, retry_after)

    def may_be_sent_again(self):
        """Whether the same request may be sent again."""
        return self.reason in (TRY_AGAIN if self.applied == "no" else RESEND)


class Session:
    """The request ids of one client in one namespace. A resend has the id of the first time, and is applied
    at most once."""

    def __init__(self):
        self.client_id, self.seq, self.used = os.urandom(16), 0, time.monotonic()

    def rested(self):
        return time.monotonic() - self.used > REST

    def next(self):
        """The next id. One thread waits for each answer, so all before it have been answered."""
        self.seq, self.used = self.seq + 1, time.monotonic()
        return kv_pb2.Mutation(
            client_id=self.client_id,
            seq=self.seq,
            issued_at_ms=int(time.time() * 1000),
            lowest_unacked=self.seq,
            attempt=1,
        )


class Cluster:
    """The nodes that are known, and the one loop that sends an operation."""

    def __init__(self, addresses):
        self.addresses, self.channels = list(addresses), {}

    def stub(self, kind, address):
        if address not in self.channels:
            options = [
                # An answer may have many siblings: more than gRPC takes by itself.
                ("grpc.max_receive_message_length", 16 << 20),
                # A node is asked itself, also where the environment names a proxy for the web.
                ("grpc.enable_http_proxy", 0),
                # Retries are decided here, where request ids are known.
                ("grpc.enable_retries", 0),
            ]
            self.channels[address] = grpc.insecure_channel(address, options)
        return kind(self.channels[address])

    def call(self, kind, method, request):
        """Sends a request until it is answered or may not be sent again. Each attempt has a deadline: half of
        the time that is left, so that a silent node does not use up all of it."""
        until, pause = time.monotonic() + DEADLINE, FIRST_PAUSE
        writes, unknown, address = hasattr(request, "mutation"), None, self.addresses[0]
        for attempt in range(1, ATTEMPTS + 1):
            left = until - time.monotonic()
            try:
                send = getattr(self.stub(kind, address), method)
                return send(request, timeout=max(left / 2, SHORTEST))
            except grpc.RpcError as error:
                failure = Failure.of(error, writes)
            if failure.applied == "unknown":
                # From here on no refusal of a resend says what became of the first one.
                unknown = unknown or failure
                request.mutation.attempt += 1
            wait = failure.retry_after + random.uniform(0, pause)
            in_time = attempt < ATTEMPTS and time.monotonic() + wait + SHORTEST < until
            if not in_time or not failure.may_be_sent_again():
                raise unknown or failure
            address = failure.details.get("leader_address")
            if not address:
                address = self.addresses[attempt % len(self.addresses)]
                time.sleep(wait)
                pause = min(2 * pause, LONGEST_PAUSE)


class Namespace:
    """One namespace. A program that knows its mode uses what that mode offers."""

    def __init__(self, cluster, name):
        self.cluster, self.name, self.session = cluster, name, Session()

    def get(self, key):
        request = kv_pb2.GetRequest(namespace=self.name, key=key)
        return self.cluster.call(kv_pb2_grpc.KvServiceStub, "Get", request)

    def write(self, method, request):
        if self.session.rested():
            self.session = Session()
        request.namespace = self.name
        request.mutation.CopyFrom(self.session.next())
        try:
            return self.cluster.call(kv_pb2_grpc.KvServiceStub, method, request)
        except Failure:
            # The first write of a client id opens a session and has to be answered before the second one is
            # sent. After a failure a new id is always right.
            self.session = Session()
            raise

    def put(self, key, value, context=None):
        return self.write("Put", kv_pb2.PutRequest(key=key, value=value, context=context))

    def compare_and_set(self, key, expected_revision, value):
        request = kv_pb2.CompareAndSetRequest(key=key, expected_revision=expected_revision, value=value)
        return self.write("CompareAndSet", request)


def create(cluster, name, mode):
    """Creates a namespace, or takes it as it is. A name keeps its mode as long as it is there."""
    request = admin_pb2.CreateNamespaceRequest(name=name, mode=mode, mutation=Session().next())
    try:
        cluster.call(admin_pb2_grpc.AdminServiceStub, "CreateNamespace", request)
    except Failure as failure:
        if failure.reason != "NAMESPACE_EXISTS":
            raise


def receipt(answer):
    """What was promised, what was delivered, and what shows it."""
    got = answer.receipt
    name = lambda guarantee: kv_pb2.Guarantee.Name(guarantee).removeprefix("GUARANTEE_").lower()
    text = f"promised {name(got.promised)}, delivered {name(got.delivered)}"
    if got.WhichOneof("evidence") == "strong":
        return f"{text}: group {got.strong.group}, term {got.strong.term}, index {got.strong.index}"
    answered = sum(reply.answered for reply in got.available.replies)
    return f"{text}: {answered} of {got.available.n} replicas answered"


def strong(cluster):
    """One value for each key, in one order."""
    create(cluster, "bank", admin_pb2.MODE_STRONG)
    bank = Namespace(cluster, "bank")
    written = bank.put(b"alice", b"100")
    print("put: revision", written.revision)
    print("     " + receipt(written))
    read = bank.get(b"alice")
    print("get:", read.value.decode(), "at revision", read.revision)

    # The wrong revision is an answer, and not an error: it says what is there.
    swap = bank.compare_and_set(b"alice", read.revision - 1, b"90")
    print("compare and set with an old revision:", swap.swapped, "found", swap.found.decode())
    swap = bank.compare_and_set(b"alice", read.revision, b"90")
    print("compare and set with this revision:", swap.swapped)

    # What a program does that does not know whether its write arrived: the same again, as a further attempt.
    request = kv_pb2.PutRequest(namespace="bank", key=b"bob", value=b"5", mutation=Session().next())
    first = cluster.call(kv_pb2_grpc.KvServiceStub, "Put", request)
    request.mutation.attempt += 1
    second = cluster.call(kv_pb2_grpc.KvServiceStub, "Put", request)
    same = first.revision == second.revision
    print("sent twice, applied once:", same and second.receipt.deduplicated)


def available(cluster):
    """Concurrent values side by side, and writes that say what they have seen."""
    create(cluster, "cart", admin_pb2.MODE_AVAILABLE)
    cart, key = Namespace(cluster, "cart"), f"user:{os.urandom(4).hex()}".encode()
    # Two writers that have not read: neither supersedes the other.
    blind = kv_pb2.WriteContext(blind=True)
    cart.put(key, b"apple,pear", blind)
    cart.put(key, b"apple,plum", blind)
    read = cart.get(key)
    print("siblings:", sorted(sibling.value.decode() for sibling in read.siblings))
    print("     " + receipt(read))

    # The union of both supersedes exactly what was read, and nothing that came since.
    things = {thing for sibling in read.siblings for thing in sibling.value.split(b",")}
    cart.put(key, b",".join(sorted(things)), kv_pb2.WriteContext(causal=read.context))
    print("merged:", [sibling.value.decode() for sibling in cart.get(key).siblings])


def refused(cluster):
    """An error says why, and whether the write was applied."""
    try:
        Namespace(cluster, "bank").put(b"", b"no key")
    except Failure as failure:
        print("refused:", failure.reason, "applied:", failure.applied)


def main():
    cluster = Cluster(sys.argv[1:] or ["127.0.0.1:7101"])
    strong(cluster)
    available(cluster)
    refused(cluster)


if __name__ == "__main__":
    main()
