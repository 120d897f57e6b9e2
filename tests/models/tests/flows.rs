//! Packets of one flow on several CPUs at once.

use loom::sync::Arc;
use loom::thread;
use samport_common::conntrack::{Segment, Sender, Sequences, State};
use samport_common::flow::FlowWord;
use samport_common::wire::tcp::Flags;
use samport_models::flow::{Entry, Open, Without};

/// The number that the client sends next, and the backend.
const CLIENT: u32 = 1_000;
const BACKEND: u32 = 5_000;

fn segment(flags: u8, sequence: u32, acknowledgement: u32) -> Segment {
    Segment { flags: Flags(flags), sequence, acknowledgement, payload: 0 }
}

fn by_client(flags: u8, acknowledgement: u32) -> (Segment, Sender) {
    (segment(flags, CLIENT, acknowledgement), Sender::Client)
}

fn by_backend(flags: u8, acknowledgement: u32) -> (Segment, Sender) {
    (segment(flags, BACKEND, acknowledgement), Sender::Backend)
}

/// An entry and its counters, for each CPU.
type Fixture = (Arc<Entry>, Arc<Open>);

/// An open connection to backend 1, in this state.
fn fixture(state: State, awaited: u32, without: Without) -> Fixture {
    let word = FlowWord::new(1, 1, state).with_tag(1);
    let open = Open::default();
    open.opens(word);
    let sequences = Sequences { acknowledged: CLIENT, awaited };
    (Arc::new(Entry::new(word, sequences, without)), Arc::new(open))
}

/// Runs these packets on a CPU each.
fn at_once<const N: usize>((entry, open): &Fixture, packets: [(Segment, Sender); N]) {
    let cpus = packets.map(|packet| {
        let (entry, open) = (entry.clone(), open.clone());
        thread::spawn(move || entry.pass(&packet, &open))
    });
    for cpu in cpus {
        cpu.join().unwrap();
    }
}

/// The backend has no open flow, and the one it had was counted out once.
fn assert_over((entry, open): &Fixture, state: State) {
    assert_eq!(entry.state(), state);
    assert_eq!(open.of(1), (1, 1), "flows opened and ended");
}

fn fins_cross(without: Without) {
    samport_models::run(move || {
        let fixture = fixture(State::Established, BACKEND, without);
        let (fin, ack) = (Flags::FIN | Flags::ACK, Flags::ACK);
        at_once(&fixture, [by_client(fin, BACKEND), by_backend(fin, CLIENT)]);
        // Each acknowledges the other's.
        let (entry, open) = &fixture;
        entry.pass(&by_client(ack, BACKEND + 1), open);
        entry.pass(&by_backend(ack, CLIENT + 1), open);
        assert_over(&fixture, State::Finished);
    });
}

/// Of two FINs that cross neither is lost, or the flow would be remembered as open for hours.
#[test]
fn fins_that_cross_end_the_flow_and_are_counted_once() {
    fins_cross(Without::Nothing);
}

#[test]
#[should_panic(expected = "Finish")]
fn without_a_second_try_one_of_two_fins_is_lost() {
    fins_cross(Without::SecondTry);
}

#[test]
#[should_panic(expected = "Finish")]
fn without_an_exchange_one_of_two_fins_is_lost() {
    fins_cross(Without::CompareAndExchange);
}

/// The client sends its FIN again while the backend acknowledges the first with its own, and again.
fn fin_is_repeated(without: Without) {
    samport_models::run(move || {
        let fin = Flags::FIN | Flags::ACK;
        let fixture = fixture(State::ClientFinishing, CLIENT + 1, without);
        let answer = by_backend(fin, CLIENT + 1);
        at_once(&fixture, [by_client(fin, BACKEND), answer, answer]);
        assert_over(&fixture, State::Finished);
    });
}

#[test]
fn a_flow_that_three_packets_end_at_once_is_counted_once() {
    fin_is_repeated(Without::Nothing);
}

#[test]
#[should_panic(expected = "flows opened and ended")]
fn without_an_exchange_a_flow_is_counted_out_twice() {
    fin_is_repeated(Without::CompareAndExchange);
}

/// A client's reset, and the backend's segment that was on its way before: it does not take the state back, in no order.
fn reset_and_late_segment(without: Without) {
    samport_models::run(move || {
        let fixture = fixture(State::Established, BACKEND, without);
        at_once(&fixture, [by_client(Flags::RST, 0), by_backend(Flags::ACK, CLIENT)]);
        assert_over(&fixture, State::Reset);
    });
}

#[test]
fn a_reset_ends_the_flow_whatever_was_on_its_way() {
    reset_and_late_segment(Without::Nothing);
}

/// Who sees the state must find the number that it is to be read with.
#[test]
#[should_panic(expected = "Established")]
fn with_the_state_before_its_number_a_late_segment_revives_a_flow_that_was_reset() {
    reset_and_late_segment(Without::NumbersFirst);
}

/// What a client's SYN begins: backend 2 gets it.
fn chosen(tag: u16) -> FlowWord {
    FlowWord::new(2, 1, State::SynSent).with_tag(tag)
}

const SYN: u32 = 77_000;

/// A reset, the backend's own FIN, and a SYN of the next connection from the same port. Whoever comes first, each
/// backend's flows are counted out once, and the new flow is what its own packets make of it.
#[test]
fn a_port_that_is_used_again_while_its_flow_ends_is_counted_once_for_each_backend() {
    samport_models::run(|| {
        let fixture = fixture(State::Established, BACKEND, Without::Nothing);
        let (entry, open) = &fixture;
        let syn = {
            let (entry, open) = (entry.clone(), open.clone());
            thread::spawn(move || entry.open(segment(Flags::SYN, SYN, 0), chosen(2), &open))
        };
        let fin = by_backend(Flags::FIN | Flags::ACK, CLIENT);
        at_once(&fixture, [by_client(Flags::RST, 0), fin]);
        let sent_to = syn.join().unwrap();
        if sent_to == chosen(2) {
            assert_eq!(entry.word().with_state(State::SynSent), chosen(2));
            // Whatever packets of the old flow have left behind.
            let answer = |flags| segment(flags, BACKEND, SYN + 1);
            entry.pass(&(answer(Flags::SYN | Flags::ACK), Sender::Backend), open);
            assert_eq!(entry.state(), State::SynReceived);
            let established = segment(Flags::ACK, SYN + 1, BACKEND + 1);
            entry.pass(&(established, Sender::Client), open);
            assert_eq!(entry.state(), State::Established);
            assert_eq!((open.of(1), open.of(2)), ((1, 1), (1, 0)));
            let reset = segment(Flags::RST, SYN + 1, 0);
            entry.pass(&(reset, Sender::Client), open);
            assert_eq!((open.of(1), open.of(2)), ((1, 1), (1, 1)));
        } else {
            let (opened, ended) = open.of(1);
            assert_eq!(opened - ended, u64::from(entry.state().is_open()));
            assert_eq!(open.of(2), (0, 0));
        }
    });
}

fn syn_on_two_cpus(without: Without) {
    samport_models::run(move || {
        let fixture = fixture(State::Reset, BACKEND, without);
        let (entry, open) = &fixture;
        let cpus = [2, 3].map(|tag| {
            let (entry, open) = (entry.clone(), open.clone());
            thread::spawn(move || entry.open(segment(Flags::SYN, SYN, 0), chosen(tag), &open))
        });
        let [one, other] = cpus.map(|cpu| cpu.join().unwrap());
        assert_eq!(one, other, "the same SYN goes to one backend");
        assert_eq!(open.of(2), (1, 0));
        assert_eq!(entry.sequences().awaited, SYN + 1);
    });
}

#[test]
fn one_syn_on_two_cpus_opens_one_flow() {
    syn_on_two_cpus(Without::Nothing);
}

#[test]
#[should_panic(expected = "goes to one backend")]
fn without_an_exchange_one_syn_opens_two_flows() {
    syn_on_two_cpus(Without::CompareAndExchange);
}

/// The kernel uses an element for another flow while a packet of the one before looks at it: a flow of the same client's
/// service, with the same backend, in the same state, that began `tag` ticks of 1.024 µs later.
fn element_is_used_again(tag: u16) {
    samport_models::run(move || {
        let fixture = fixture(State::Established, BACKEND, Without::Nothing);
        let (entry, open) = &fixture;
        let before = entry.word();
        let late = {
            let (entry, open) = (entry.clone(), open.clone());
            // It has found its flow.
            thread::spawn(move || entry.advance(before, &by_client(Flags::RST, 0), &open))
        };
        let other = before.with_tag(1 + tag);
        entry.use_for(other, Sequences { acknowledged: 9_000, awaited: 8_000 });
        open.opens(other);
        late.join().unwrap();
        assert_eq!(entry.word(), other, "another flow's word");
        // What was written without an exchange the backend's next segment puts right.
        entry.pass(&by_backend(Flags::ACK, 9_100), open);
        assert_eq!(entry.state(), State::Established);
        assert_eq!(entry.sequences().acknowledged, 9_100);
    });
}

#[test]
fn a_packet_of_a_flow_that_was_taken_out_ends_no_other_flow() {
    element_is_used_again(1);
}

#[test]
#[should_panic(expected = "another flow's word")]
fn without_a_tag_a_packet_of_a_flow_that_was_taken_out_ends_another() {
    element_is_used_again(0);
}
