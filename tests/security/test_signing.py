"""Signatures of orders and files: what is refused, and that nothing else is."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import waiting
from rigs.agent_rig import task

from fleetnas.fleet_protocol.codec import decode, decode_task, encode
from fleetnas.fleet_protocol.errors import ProtocolError, UntrustedError
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask
from fleetnas.fleet_protocol.security.signing import (
    MAX_STREAMS,
    WINDOW,
    OrderSigner,
    OrderVerifier,
    ReplayWindow,
    fingerprint,
    new_private_key,
    public_key_of,
    sign_file,
    verify_file,
)

KEY, OTHER_KEY = new_private_key(), new_private_key()
ORDER = encode(task())


def signer(key: bytes = KEY, fleet: str = "lab", stream: int = 1, session: int = 7) -> OrderSigner:
    made = OrderSigner(key, fleet, stream)
    for agent in ("pi", "jetson"):
        made.note_session(agent, session)
    return made


def verifier(*keys: bytes, fleet: str = "lab", agent: str = "pi", session: int = 7) -> OrderVerifier:
    return OrderVerifier([public_key_of(key) for key in keys or (KEY,)], fleet, agent, session)


class TestOrders:
    def test_a_signed_order_is_taken_and_reads_as_it_was_written(self) -> None:
        payload = signer().sign("pi", "task", ORDER)
        verifier().check("task", payload)
        assert decode_task(payload).model_copy(update={"signature": None, "schema_minor": 0}) == task()
        for channel, message in (("task", CancelTask(task=task().task)), ("ack", Acknowledgement(task=task().task))):
            payload = signer().sign("pi", channel, encode(message))  # type: ignore[arg-type]
            verifier().check(channel, payload)  # type: ignore[arg-type]
            assert decode(type(message), payload).model_copy(update={"signature": None, "schema_minor": 0}) == message

    def test_an_unsigned_order_is_refused(self) -> None:
        with pytest.raises(UntrustedError, match="not signed") as refusal:
            verifier().check("task", ORDER)
        assert refusal.value.answerable

    def test_every_single_altered_bit_is_refused(self) -> None:
        payload = signer().sign("pi", "task", ORDER)
        for place in range(8 * len(payload)):
            altered = bytearray(payload)
            altered[place // 8] ^= 1 << place % 8
            with pytest.raises(UntrustedError):
                verifier().check("task", bytes(altered))

    @pytest.mark.parametrize("cut", [0, 1, 50, 130, 140, 200])
    def test_a_shortened_order_is_refused(self, cut: int) -> None:
        with pytest.raises(UntrustedError):
            verifier().check("task", signer().sign("pi", "task", ORDER)[:cut])

    @pytest.mark.parametrize(
        ("made_by", "taken_by", "channel"),
        [
            (signer(OTHER_KEY), verifier(), "task"),
            (signer(fleet="garage"), verifier(), "task"),
            (signer(), verifier(agent="jetson"), "task"),
            (signer(), verifier(), "ack"),
        ],
        ids=["another key", "another fleet", "another agent", "another channel"],
    )
    def test_an_order_for_something_else_is_refused(
        self, made_by: OrderSigner, taken_by: OrderVerifier, channel: str
    ) -> None:
        with pytest.raises(UntrustedError, match="not signed with it"):
            taken_by.check(channel, made_by.sign("pi", "task", ORDER))  # type: ignore[arg-type]

    def test_an_order_to_an_earlier_process_of_the_agent_is_refused(self) -> None:
        payload = signer(session=6).sign("pi", "task", ORDER)
        verifier(session=6).check("task", payload)
        with pytest.raises(UntrustedError, match="session 6") as refusal:
            verifier(session=7).check("task", payload)
        assert not refusal.value.answerable

    def test_an_order_is_taken_once(self) -> None:
        taken_by, made_by = verifier(), signer()
        first, second = made_by.sign("pi", "task", ORDER), made_by.sign("pi", "task", ORDER)
        taken_by.check("task", second)
        taken_by.check("task", first)
        for payload in (first, second):
            with pytest.raises(UntrustedError, match="taken before"):
                taken_by.check("task", payload)

    def test_a_forged_order_does_not_use_up_a_genuine_ones_number(self) -> None:
        taken_by = verifier()
        with pytest.raises(UntrustedError):
            taken_by.check("task", signer(OTHER_KEY).sign("pi", "task", ORDER))
        taken_by.check("task", signer().sign("pi", "task", ORDER))

    def test_while_keys_change_both_coordinators_are_obeyed(self) -> None:
        taken_by = verifier(OTHER_KEY, KEY)
        taken_by.check("task", signer(KEY).sign("pi", "task", ORDER))
        taken_by.check("task", signer(OTHER_KEY).sign("pi", "task", ORDER))

    def test_streams_are_forgotten_without_letting_their_orders_in_again(self) -> None:
        taken_by = verifier()
        orders = [signer(stream=stream).sign("pi", "task", ORDER) for stream in range(1, MAX_STREAMS + 10)]
        for payload in orders:
            taken_by.check("task", payload)
        for payload in orders:
            with pytest.raises(UntrustedError, match="taken before"):
                taken_by.check("task", payload)

    def test_sessions_are_per_agent(self) -> None:
        made_by = signer()
        made_by.note_session("jetson", 9)
        verifier(agent="jetson", session=9).check("task", made_by.sign("jetson", "task", ORDER))
        verifier(agent="pi", session=7).check("task", made_by.sign("pi", "task", ORDER))

    def test_a_key_of_another_length_is_one_clear_error(self) -> None:
        with pytest.raises(ProtocolError, match="32 bytes"):
            OrderVerifier([b"short"], "lab", "pi", 1)


class TestReplayWindow:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32), st.integers(1, WINDOW // 2))
    def test_reordered_and_repeated_numbers_are_taken_exactly_once(self, seed: int, jitter: int) -> None:
        rng = random.Random(seed)
        numbers = sorted(range(1, 3000), key=lambda number: number + rng.uniform(0, jitter))
        repeated = [number for number in numbers for _ in range(rng.choice((1, 1, 2)))]
        window = ReplayWindow()
        assert [number for number in repeated if window.take(number)] == numbers

    def test_what_is_too_old_to_tell_is_refused(self) -> None:
        window = ReplayWindow()
        assert window.take(WINDOW + 5)
        assert not window.take(5)
        assert window.take(6)


class TestFiles:
    def test_a_signed_file_is_known_and_an_altered_one_is_not(self, tmp_path: Path) -> None:
        bundle = tmp_path / "x.supernet"
        bundle.write_bytes(random.Random(0).randbytes(2_000_000))
        signature = sign_file(KEY, bundle)
        verify_file([public_key_of(OTHER_KEY), public_key_of(KEY)], bundle, signature)
        with pytest.raises(UntrustedError, match="altered"):
            verify_file([public_key_of(OTHER_KEY)], bundle, signature)
        data = bytearray(bundle.read_bytes())
        data[1_234_567] ^= 16
        bundle.write_bytes(data)
        for text in (signature, "", "not base64", sign_file(OTHER_KEY, bundle)):
            with pytest.raises(UntrustedError, match="altered"):
                verify_file([public_key_of(KEY)], bundle, text)

    def test_an_order_is_no_file_signature(self, tmp_path: Path) -> None:
        """One key signs both; neither may pass for the other."""
        file = tmp_path / "f"
        file.write_bytes(b"x")
        bare = Ed25519PrivateKey.from_private_bytes(KEY).sign(b"x").hex()
        with pytest.raises(UntrustedError):
            verify_file([public_key_of(KEY)], file, bare)


def test_an_agent_without_the_library_loads_none_of_it_and_obeys_nobody_unchecked() -> None:
    program = """
import sys
import fleetnas.agent.cli.main, fleetnas.agent.service.service, fleetnas.coordinator.fleet.agent_link
assert not any(name.split(".")[0] == "cryptography" for name in sys.modules)
sys.modules["cryptography"] = None
from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.security.signing import OrderVerifier
try:
    OrderVerifier([bytes(32)], "lab", "pi", 1)
except MissingDependencyError as error:
    print(error)
"""
    run = waiting.run([sys.executable, "-c", program])
    assert "pip install 'cryptography>=" in run.stdout, run.stderr


def test_fingerprints_look_like_those_of_openssh() -> None:
    text = fingerprint(public_key_of(KEY))
    assert text.startswith("SHA256:")
    assert len(text) == 50
