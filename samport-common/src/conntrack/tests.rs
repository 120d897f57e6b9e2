//! The states, one by one and all of them.

use super::*;

const SYN: u8 = Flags::SYN;
const ACK: u8 = Flags::ACK;
const FIN: u8 = Flags::FIN | Flags::ACK;
const RST: u8 = Flags::RST;

/// What the backend has acknowledged, and what is waited for, in most of these tests.
const NUMBERS: Sequences = Sequences { acknowledged: 1_000, awaited: 5_000 };
const UNKNOWN: Sequences = Sequences { acknowledged: 0, awaited: 0 };

fn known(state: State, idle_ticks: u32, backend_serves: bool) -> Known {
    let timeout = Timeouts::new(&Seconds::DEFAULT).of(state);
    Known { state, over: state.is_over(idle_ticks, timeout), backend_serves }
}

fn segment(flags: u8, sequence: u32, acknowledgement: u32, payload: u16) -> Segment {
    Segment { flags: Flags(flags), sequence, acknowledgement, payload }
}

/// A connection whose client begins with number 100 and whose backend begins with 700.
struct Connection {
    state: State,
    sequences: Sequences,
}

impl Connection {
    fn new() -> Self {
        let syn = segment(SYN, 100, 0, 0);
        Self { state: State::first(Protocol::Tcp, syn.flags), sequences: first(&syn) }
    }

    fn open() -> Self {
        let mut connection = Self::new();
        assert_eq!(connection.backend(SYN | ACK, 700, 101, 0), State::SynReceived);
        assert_eq!(connection.client(ACK, 101, 701, 0), State::Established);
        connection
    }

    fn client(&mut self, flags: u8, sequence: u32, acknowledgement: u32, payload: u16) -> State {
        self.step(Sender::Client, &segment(flags, sequence, acknowledgement, payload))
    }

    fn backend(&mut self, flags: u8, sequence: u32, acknowledgement: u32, payload: u16) -> State {
        self.step(Sender::Backend, &segment(flags, sequence, acknowledgement, payload))
    }

    fn step(&mut self, sender: Sender, segment: &Segment) -> State {
        let Step { state, sequences } = step(self.state, segment, sender, self.sequences);
        (self.state, self.sequences) = (state, sequences);
        state
    }
}

#[test]
fn a_connection_that_the_client_closes_first() {
    let mut connection = Connection::open();
    assert_eq!(connection.client(FIN, 101, 701, 10), State::ClientFinishing);
    assert_eq!(connection.backend(ACK, 701, 111, 0), State::ClientFinishing, "its bytes");
    assert_eq!(connection.backend(ACK, 701, 112, 0), State::ClientFinished);
    assert_eq!(connection.backend(FIN, 701, 112, 0), State::Finished);
    assert_eq!(connection.client(ACK, 112, 702, 0), State::Finished);
}

#[test]
fn a_connection_that_the_backend_closes_first() {
    let mut connection = Connection::open();
    assert_eq!(connection.backend(FIN, 701, 101, 0), State::BackendFinished);
    assert_eq!(connection.client(FIN, 101, 702, 0), State::Finishing);
    assert_eq!(connection.backend(ACK, 702, 102, 0), State::Finished);
}

#[test]
fn a_connection_that_both_close_at_once() {
    let mut connection = Connection::open();
    assert_eq!(connection.client(FIN, 101, 701, 0), State::ClientFinishing);
    assert_eq!(connection.backend(FIN, 701, 101, 0), State::Finishing);
    assert_eq!(connection.client(FIN, 101, 702, 0), State::Finishing, "again");
    assert_eq!(connection.backend(ACK, 702, 102, 0), State::Finished);
}

/// A FIN of somebody who guesses, before or after the client's own, does not keep that from being confirmed.
#[test]
fn a_forged_fin_does_not_hide_the_real_one() {
    for forged in [50, 102, 0x4000_0000, 0x8000_0000, 0xffff_fffe] {
        let forge = |connection: &mut Connection| {
            let state = connection.client(FIN, forged, 5, 0);
            assert_eq!(state, State::ClientFinishing);
        };
        let mut connection = Connection::open();
        forge(&mut connection);
        assert_eq!(connection.backend(ACK, 701, 101, 0), State::ClientFinishing, "{forged}");
        connection.client(FIN, 101, 701, 0);
        forge(&mut connection);
        assert_eq!(connection.backend(ACK, 701, 102, 0), State::ClientFinished, "{forged}");
    }
}

/// Case 28: RST shortens an entry's life; a spurious one mid-stream does not end the connection.
#[test]
fn a_spurious_reset_does_not_end_a_connection_that_goes_on() {
    let timeouts = Timeouts::new(&Seconds::DEFAULT);
    // Of one that the backend may not have obeyed nobody knows, whether it challenges it or not.
    for (sequence, reset, is_sure) in [(101, State::Reset, true), (102, State::ClientReset, false)]
    {
        let mut connection = Connection::open();
        assert_eq!(connection.client(RST, sequence, 0, 0), reset);
        assert_eq!(timeouts.of(reset) < timeouts.of(State::Established), is_sure);
        assert_eq!((reset.has_ended(), reset.is_open()), (is_sure, false));
        let known = Some(known(reset, 0, true));
        assert_eq!(decide(known, Protocol::Tcp, Flags(ACK), Openers::First), Decision::Stay);
        assert_eq!(connection.client(ACK, 101, 701, 0), reset, "only the backend can tell");
        assert_eq!(connection.backend(ACK, 701, 105, 0), State::Established);
    }
    // Far from what the backend waits for: it does not even look at it.
    for sequence in [100, 101 + 65_536, 0x8000_0000] {
        assert_eq!(Connection::open().client(RST, sequence, 0, 0), State::Established);
    }
}

/// What the backend had sent before an obeyed reset reached it comes after it.
#[test]
fn a_late_segment_of_the_backend_does_not_undo_an_obeyed_reset() {
    let mut connection = Connection::open();
    assert_eq!(connection.client(RST, 101, 0, 0), State::Reset);
    assert_eq!(connection.backend(ACK, 701, 101, 1_000), State::Reset);
    assert_eq!(connection.backend(FIN, 1_701, 101, 0), State::Reset);
    // One of the backend's may have answered somebody else, before the client's ACK came (SYN cookies).
    let mut connection = Connection::open();
    assert_eq!(connection.backend(RST, 77, 0, 0), State::Reset);
    assert_eq!(connection.backend(ACK, 701, 101, 1_000), State::Established);
}

/// The short way and the long one say the same, of every state and all flags.
#[test]
fn what_goes_on_stays_with_its_backend() {
    let mut going_on = 0;
    for (state, bits) in State::ALL.into_iter().flat_map(|s| (0..=u8::MAX).map(move |b| (s, b))) {
        let flags = Flags(bits);
        if !goes_on(state, flags) {
            continue;
        }
        going_on += 1;
        let is_udp = matches!(state, State::Answered | State::Assured);
        let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
        for over in [false, true] {
            // A datagram on a flow that is over begins another: that is asked beside.
            if protocol == Protocol::Tcp || !over {
                let known = Known { state, over, backend_serves: true };
                let decided = decide(Some(known), protocol, flags, Openers::First);
                assert_eq!(decided, Decision::Stay, "{state:?}, flags {bits:#04x}");
            }
        }
        let segment = segment(bits, 1_000, 5_000, 0);
        assert!(!crate::failover::refuses(state, &segment, NUMBERS), "{state:?} {segment:?}");
    }
    assert_eq!(going_on, 11 * 128, "eleven states, and the flags without SYN");
}

/// A plain segment changes nothing but what the backend has acknowledged.
#[test]
fn a_plain_segment_leaves_its_flow_as_it_is() {
    let senders = [Sender::Client, Sender::Backend];
    let numbers = [0, 999, 1_000, 1_001, 4_999, 5_000, 5_001, 0x8000_0000];
    for (state, sender) in State::ALL.into_iter().flat_map(|s| senders.map(|sender| (s, sender))) {
        for (bits, number) in (0..=u8::MAX).flat_map(|b| numbers.map(|number| (b, number))) {
            let segment = segment(bits, number, number, 9);
            if !is_plain(state, segment.flags, sender) {
                continue;
            }
            let is_acknowledging =
                sender == Sender::Backend && segment.flags.ack() && !is_datagrams(state);
            let acknowledged = if is_acknowledging { number } else { 1_000 };
            let expected = Step { state, sequences: Sequences { acknowledged, ..NUMBERS } };
            let next = step(state, &segment, sender, NUMBERS);
            assert_eq!(next, expected, "{state:?} {segment:?} {sender:?}");
        }
    }
}

fn is_datagrams(state: State) -> bool {
    matches!(state, State::Unanswered | State::Answered | State::Assured)
}

#[test]
fn only_a_pure_syn_opens_a_flow() {
    for bits in 0..=u8::MAX {
        let opens = bits & (Flags::SYN | Flags::ACK | Flags::FIN | Flags::RST) == Flags::SYN;
        let expected =
            if opens { Decision::Choose } else { Decision::Refuse(Verdict::MidFlowMiss) };
        assert_eq!(
            decide(None, Protocol::Tcp, Flags(bits), Openers::First),
            expected,
            "flags {bits:#04x}"
        );
    }
}

/// Where connections are found by their hash, one that was forgotten goes on where it was.
#[test]
fn the_middle_of_a_forgotten_connection_opens_a_flow_where_its_hash_finds_it() {
    for bits in 0..=u8::MAX {
        let flags = Flags(bits);
        let decision = decide(None, Protocol::Tcp, flags, Openers::Any);
        assert_eq!(decision == Decision::Choose, !flags.rst(), "{flags:?}");
        let first = State::first(Protocol::Tcp, flags);
        assert_eq!(first == State::SynSent, flags.opens());
        assert!(first == State::SynSent || first == State::Unverified);
    }
}

#[test]
fn a_syn_again_stays_until_the_connection_is_over() {
    for state in State::ALL {
        // After a reset that may be forged only the backend can tell; a flow that nobody has confirmed is
        // not in the way of a connection that begins.
        let over = match state {
            State::ClientReset => false,
            State::Unverified => true,
            _ => !state.is_open(),
        };
        let syn = Flags(SYN);
        let decision = decide(Some(known(state, 0, true)), Protocol::Tcp, syn, Openers::First);
        assert_eq!(decision == Decision::Choose, over, "{state:?}: {decision:?}");
        assert_eq!(
            decide(Some(known(state, 100_000, true)), Protocol::Tcp, syn, Openers::First),
            Decision::Choose,
            "{state:?}"
        );
    }
}

#[test]
fn a_flow_without_its_backend_starts_anew_or_is_refused() {
    for state in State::ALL {
        assert_eq!(
            decide(Some(known(state, 0, false)), Protocol::Tcp, Flags(SYN), Openers::First),
            Decision::Choose
        );
        let refused =
            decide(Some(known(state, 0, false)), Protocol::Tcp, Flags(ACK), Openers::First);
        assert!(matches!(refused, Decision::Refuse(_)), "{state:?}: {refused:?}");
    }
}

/// Case 27: a SYN-only entry expires in 20 s. Case 31: 2 h of silence do not end a connection.
#[test]
fn entries_expire_by_their_state() {
    let over = |state: State, seconds: u32| {
        let ticks = Timeouts::ticks(seconds);
        state.is_over(ticks, Timeouts::new(&Seconds::DEFAULT).of(state))
    };
    assert!(!over(State::SynSent, 20) && over(State::SynSent, 22));
    assert!(!over(State::Established, 2 * 3_600 + 60));
    assert!(over(State::Established, 3 * 3_600));
    assert!(!over(State::Unanswered, 30) && over(State::Unanswered, 32));
    assert!(!over(State::Answered, 60) && over(State::Answered, 62));
    assert!(over(State::Reset, 0) && over(State::Finished, 0) && over(State::Closed, 0));
}

#[test]
fn every_state_survives_its_byte() {
    for state in State::ALL {
        assert_eq!(State::from_byte(state.to_byte()), state);
    }
    for byte in 16..=u8::MAX {
        assert_eq!(State::from_byte(byte), State::Closed);
    }
}

#[test]
fn datagrams_stay_until_they_time_out_or_their_backend_is_gone() {
    let decide = |known| decide(known, Protocol::Udp, Flags(0), Openers::First);
    assert_eq!(decide(None), Decision::Choose);
    for (state, after_client, after_backend) in [
        (State::Unanswered, State::Unanswered, State::Answered),
        (State::Answered, State::Assured, State::Answered),
        (State::Assured, State::Assured, State::Assured),
    ] {
        assert_eq!(decide(Some(known(state, 0, true))), Decision::Stay);
        assert_eq!(decide(Some(known(state, 100_000, true))), Decision::Choose);
        assert_eq!(decide(Some(known(state, 0, false))), Decision::Choose);
        for (sender, state_after) in
            [(Sender::Client, after_client), (Sender::Backend, after_backend)]
        {
            let next = step(state, &Segment::default(), sender, UNKNOWN);
            assert_eq!(next, Step { state: state_after, sequences: UNKNOWN });
        }
    }
}

/// The whole machine for TCP, written down a second time as a table: for each state the next one after each
/// kind of the client's segments. `=` names the number that is known, `~` one that is near, `?` any other.
#[test]
fn every_segment_of_the_client_leads_where_the_table_says() {
    use State::{
        BackendFinished as Bf, ClientFinished as Cf, ClientFinishing as Cg, ClientReset as Cr,
        Closed as C, Established as E, Failed as Fd, Finished as F, Finishing as Fg, Reset as R,
        SynReceived as Sr, SynSent as Ss, Unverified as U,
    };
    let kinds = [
        segment(SYN, 7_000, 0, 0),
        segment(SYN | ACK, 7_000, 5_000, 0),
        segment(ACK, 7_000, 5_000, 0),
        segment(ACK, 1_000, 5_001, 0),
        segment(FIN, 7_000, 5_000, 0),
        segment(FIN, 1_000, 4_999, 0),
        segment(RST, 1_000, 0, 0),
        segment(RST, 1_000 + 65_535, 0, 0),
        segment(RST, 1_000 + 65_536, 5_000, 0),
    ];
    // State; SYN, SYN+ACK, ACK=, ACK?, FIN=, FIN?, RST=, RST~, RST?.
    let table = [
        (C, [C, C, C, C, C, C, C, C, C]),
        (Fd, [Fd, Fd, Fd, Fd, Fd, Fd, Fd, Fd, Fd]),
        (Ss, [Ss, Ss, Ss, Ss, Ss, Ss, Ss, Ss, Ss]),
        (Sr, [Sr, Sr, E, Sr, Cg, Sr, R, Cr, Sr]),
        (E, [E, E, E, E, Cg, Cg, R, Cr, E]),
        (Cg, [Cg, Cg, Cg, Cg, Cg, Cg, R, Cr, Cg]),
        (Cf, [Cf, Cf, Cf, Cf, Cf, Cf, R, Cr, Cf]),
        (Bf, [Bf, Bf, Bf, Bf, Fg, Fg, R, Cr, Bf]),
        (Fg, [Fg, Fg, Fg, Fg, Fg, Fg, R, Cr, Fg]),
        (F, [F, F, F, F, F, F, F, F, F]),
        (R, [R, R, R, R, R, R, R, R, R]),
        (Cr, [Cr, Cr, Cr, Cr, Cr, Cr, R, Cr, Cr]),
        (U, [U, U, U, U, U, U, U, U, U]),
    ];
    assert_eq!(table.len() + 3, State::ALL.len(), "UDP has three");
    for (state, row) in table {
        for (kind, expected) in kinds.into_iter().zip(row) {
            for payload in [0, 1, u16::MAX] {
                let segment = Segment { payload, ..kind };
                let next = step(state, &segment, Sender::Client, NUMBERS).state;
                assert_eq!(next, expected, "{state:?} {segment:?}");
            }
        }
    }
    // Where no numbers are known, every ACK may be the right one, and every reset.
    let table = [
        (Ss, [Ss, Ss, Ss, Ss, Ss, Ss, Ss, Ss, Ss]),
        (Sr, [Sr, Sr, E, E, Cg, Cg, Cr, Cr, Cr]),
        (E, [E, E, E, E, Cg, Cg, Cr, Cr, Cr]),
        (Cf, [Cf, Cf, Cf, Cf, Cf, Cf, Cr, Cr, Cr]),
        (Bf, [Bf, Bf, Bf, Bf, Fg, Fg, Cr, Cr, Cr]),
        (F, [F, F, F, F, F, F, F, F, F]),
        (U, [U, U, U, U, U, U, U, U, U]),
    ];
    for (state, row) in table {
        for (segment, expected) in kinds.into_iter().zip(row) {
            let next = step(state, &segment, Sender::Client, UNKNOWN).state;
            assert_eq!(next, expected, "{state:?} {segment:?}, unknown numbers");
        }
    }
}

/// The same of the backend's segments. `=` acknowledges what was acknowledged before, `+` more, `!` what follows
/// the client's FIN.
#[test]
fn every_segment_of_the_backend_leads_where_the_table_says() {
    use State::{
        BackendFinished as Bf, ClientFinished as Cf, ClientFinishing as Cg, ClientReset as Cr,
        Closed as C, Established as E, Failed as Fd, Finished as F, Finishing as Fg, Reset as R,
        SynReceived as Sr, SynSent as Ss, Unverified as U,
    };
    let kinds = [
        segment(SYN, 9_000, 0, 0),
        segment(SYN | ACK, 9_000, 1_001, 0),
        segment(SYN | ACK, 9_000, 1_000, 0),
        segment(ACK, 9_000, 1_000, 0),
        segment(ACK, 9_000, 1_001, 0),
        segment(ACK, 9_000, 5_000, 0),
        segment(ACK, 9_000, 1_000, 1),
        segment(ACK, 9_000, 1_001, u16::MAX),
        segment(FIN, 9_000, 1_000, 0),
        segment(FIN, 9_000, 1_001, 1),
        segment(FIN, 9_000, 5_000, 0),
        segment(RST | ACK, 5_000, 5_000, 0),
        segment(RST | ACK, 4_999, 4_999, 0),
    ];
    // State; SYN, SYN+ACK, the same again, ACK=, ACK+, ACK!, data=, data+, FIN=, FIN+, FIN!, RST, RST?.
    let table = [
        (C, [C, C, C, C, C, C, C, C, C, C, C, C, C]),
        (Fd, [Fd, Fd, Fd, Fd, Fd, Fd, Fd, Fd, Fd, Fd, Fd, Fd, Fd]),
        (Ss, [Ss, Sr, Sr, Ss, Ss, Ss, E, E, Ss, Ss, Ss, R, Ss]),
        (Sr, [Sr, Sr, Sr, Sr, Sr, Sr, E, E, Bf, Bf, Bf, R, Sr]),
        (E, [E, Sr, E, E, E, E, E, E, Bf, Bf, Bf, R, R]),
        (Cg, [Cg, Sr, Cg, Cg, Cg, Cf, Cg, Cg, Fg, Fg, F, R, R]),
        (Cf, [Cf, Sr, Cf, Cf, Cf, Cf, Cf, Cf, F, F, F, R, R]),
        (Bf, [Bf, Sr, Bf, Bf, Bf, Bf, Bf, Bf, Bf, Bf, Bf, R, R]),
        (Fg, [Fg, Sr, Fg, Fg, Fg, F, Fg, Fg, Fg, Fg, F, R, R]),
        (F, [F, Sr, F, F, F, F, F, F, F, F, F, R, R]),
        (R, [R, Sr, R, E, E, R, E, E, Bf, Bf, R, R, R]),
        (Cr, [Cr, Sr, Cr, E, E, E, E, E, Bf, Bf, Bf, R, R]),
        (U, [U, Sr, Sr, Cg, Cg, Cf, Cg, Cg, Fg, Fg, F, R, R]),
    ];
    assert_eq!(table.len() + 3, State::ALL.len(), "UDP has three");
    for (state, row) in table {
        for (segment, expected) in kinds.iter().zip(row) {
            let next = step(state, segment, Sender::Backend, NUMBERS).state;
            assert_eq!(next, expected, "{state:?} {segment:?}");
        }
    }
    // Where the SYN-ACK's number is not known, every reset may be the answer to it.
    for state in [Ss, Sr] {
        let [.., other] = &kinds;
        assert_eq!(step(state, other, Sender::Backend, UNKNOWN).state, R, "{state:?}");
    }
    // No FIN has been seen of a connection that was found in its middle.
    let row = [U, Sr, Sr, E, E, E, E, E, Bf, Bf, Bf, R, R];
    for (segment, expected) in kinds.iter().zip(row) {
        assert_eq!(step(U, segment, Sender::Backend, UNKNOWN).state, expected, "{segment:?}");
    }
    assert_eq!(step(Cf, &kinds[8], Sender::Backend, UNKNOWN).state, F);
}

#[test]
fn what_is_kept_of_the_numbers() {
    use Sender::{Backend, Client};
    let after = |state, sender, segment: Segment| step(state, &segment, sender, NUMBERS).sequences;
    let awaits = |awaited| Sequences { awaited, ..NUMBERS };
    let acknowledges = |acknowledged| Sequences { acknowledged, ..NUMBERS };
    // The SYN again with another number; what it carries (Fast Open) may not be accepted.
    let begun = Sequences { acknowledged: 0, awaited: 8 };
    assert_eq!(after(State::SynSent, Client, segment(SYN, 7, 0, 100)), begun);
    assert_eq!(first(&segment(SYN, 7, 0, 100)), begun);
    assert_eq!(first(&segment(ACK, 7, 1, 100)), UNKNOWN);
    assert_eq!(first(&segment(FIN, 7, 1, 100)), Sequences { acknowledged: 0, awaited: 108 });
    // A reset that is obeyed, and one that may be.
    assert_eq!(after(State::Established, Client, segment(RST, 1_000, 0, 0)), awaits(1_000));
    assert_eq!(after(State::Established, Client, segment(RST, 1_001, 0, 0)), NUMBERS);
    // A SYN-ACK, of a SYN with 100 bytes.
    let answered = Sequences { acknowledged: 108, awaited: 1 };
    let accepting = segment(SYN | ACK, 0, 108, 0);
    for state in [State::SynSent, State::SynReceived, State::Unverified, State::Established] {
        assert_eq!(after(state, Backend, accepting), answered);
    }
    // The backend's other segments, in connections.
    assert_eq!(after(State::Established, Backend, segment(ACK, 7, 9, 0)), acknowledges(9));
    assert_eq!(after(State::ClientReset, Backend, segment(ACK, 7, 9, 0)), acknowledges(9));
    assert_eq!(after(State::Established, Backend, segment(SYN, 7, 9, 0)), NUMBERS);
    assert_eq!(after(State::SynSent, Backend, segment(ACK, 7, 9, 0)), NUMBERS, "a challenge");
    assert_eq!(after(State::Established, Backend, segment(RST | ACK, 7, 9, 0)), NUMBERS);
    // The client's FIN, with its bytes; the one that is reached first of two.
    for state in [State::Established, State::BackendFinished, State::Unverified] {
        assert_eq!(after(state, Client, segment(FIN, 7_000, 7, 10)), awaits(7_011));
    }
    for state in [State::ClientFinishing, State::Finishing] {
        assert_eq!(after(state, Client, segment(FIN, 4_998, 7, 0)), awaits(4_999));
        assert_eq!(after(state, Client, segment(FIN, 5_000, 7, 0)), NUMBERS);
        assert_eq!(after(state, Client, segment(FIN, 998, 7, 0)), NUMBERS);
        assert_eq!(step(state, &segment(FIN, 9, 7, 0), Client, UNKNOWN).sequences.awaited, 10);
    }
    assert_eq!(after(State::Established, Client, segment(ACK, 7_000, 7, 10)), NUMBERS);
    assert_eq!(after(State::Established, Client, segment(RST, 7_000, 7, 10)), NUMBERS);
}

/// The middle of a connection whose entry was forgotten: whatever comes first, the backend says what it is.
#[test]
fn the_middle_of_a_connection_is_believed_when_the_backend_answers() {
    let found = |flags, sequence, acknowledgement| {
        let segment = segment(flags, sequence, acknowledgement, 0);
        let state = State::first(Protocol::Tcp, segment.flags);
        assert_eq!(state, State::Unverified);
        Connection { state, sequences: first(&segment) }
    };
    assert_eq!(found(ACK, 500, 900).backend(ACK, 900, 500, 0), State::Established);
    assert_eq!(found(ACK, 500, 900).backend(FIN, 900, 500, 0), State::BackendFinished);
    assert_eq!(found(ACK, 500, 900).backend(RST, 900, 0, 0), State::Reset);
    let mut finishing = found(FIN, 500, 900);
    assert_eq!(finishing.backend(ACK, 900, 501, 0), State::ClientFinished);
    assert_eq!(finishing.backend(FIN, 900, 501, 0), State::Finished);
    assert_eq!(found(FIN, 500, 900).backend(FIN, 900, 501, 0), State::Finished);
    // Bytes of the backend's have crossed with it.
    let mut finishing = found(FIN, 500, 900);
    assert_eq!(finishing.backend(ACK, 900, 500, 10), State::ClientFinishing);
    assert_eq!(finishing.backend(FIN, 910, 501, 0), State::Finished);
    // It was forged, and then the client's own comes.
    let mut finishing = found(FIN, 77, 78);
    assert_eq!(finishing.backend(ACK, 900, 500, 0), State::ClientFinishing);
    assert_eq!(finishing.client(FIN, 500, 900, 0), State::ClientFinishing);
    assert_eq!(finishing.backend(ACK, 900, 501, 0), State::ClientFinished);
    let mut finishing = found(ACK, 500, 900);
    assert_eq!(finishing.client(FIN, 500, 900, 0), State::Unverified);
    assert_eq!(finishing.backend(ACK, 900, 501, 0), State::ClientFinished);
}

/// A port used again after a crash: the backend challenges the SYN, the client resets what it knows nothing
/// of, and its next SYN opens a new connection.
#[test]
fn a_port_that_is_used_again_after_a_crash() {
    let mut connection = Connection::open();
    assert_eq!(connection.client(SYN, 90_000, 0, 0), State::Established);
    assert_eq!(connection.backend(ACK, 701, 101, 0), State::Established, "the challenge");
    assert_eq!(connection.client(RST, 101, 0, 0), State::Reset);
    let over = Some(known(State::Reset, 0, true));
    assert_eq!(decide(over, Protocol::Tcp, Flags(SYN), Openers::First), Decision::Choose);
    // Or it was the backend that has forgotten.
    let mut connection = Connection::open();
    assert_eq!(connection.client(SYN, 90_000, 0, 0), State::Established);
    assert_eq!(connection.backend(SYN | ACK, 3_000, 90_001, 0), State::SynReceived);
    assert_eq!(connection.client(ACK, 90_001, 701, 0), State::SynReceived, "of the old one");
    assert_eq!(connection.client(ACK, 90_001, 3_001, 0), State::Established);
}

/// A SYN-ACK that comes again because the client's ACK was lost does not open the connection a second time.
#[test]
fn a_syn_ack_again_changes_nothing() {
    let mut connection = Connection::open();
    assert_eq!(connection.backend(SYN | ACK, 700, 101, 0), State::Established);
    assert_eq!(connection.client(RST, 150, 0, 0), State::ClientReset);
    assert_eq!(connection.backend(SYN | ACK, 700, 101, 0), State::ClientReset);
    // It has crossed with a FIN, which is acknowledged right after it.
    let mut connection = Connection::open();
    assert_eq!(connection.client(FIN, 101, 701, 0), State::ClientFinishing);
    assert_eq!(connection.backend(SYN | ACK, 700, 101, 0), State::ClientFinishing);
    assert_eq!(connection.backend(ACK, 701, 102, 0), State::ClientFinished);
}

/// Fast Open: the SYN's bytes may be accepted and answered before the handshake is complete.
#[test]
fn bytes_that_answer_a_syns_open_the_connection() {
    let mut connection = Connection::new();
    assert_eq!(connection.backend(SYN | ACK, 700, 151, 0), State::SynReceived);
    assert_eq!(connection.backend(ACK, 701, 151, 0), State::SynReceived);
    assert_eq!(connection.backend(ACK, 701, 151, 40), State::Established);
    assert_eq!(connection.client(RST, 151, 0, 0), State::Reset);
}
