//! Target `conntrack`. The first byte says what opens flows and what kind of input this is:
//! - [`anybody`]: the packets of one flow, eight bytes each, of senders that keep to no rule;
//! - [`parties`]: four bytes for initial numbers, then what happens to a client and a backend that keep to TCP's
//!   rules, six bytes each, with an attacker who does not see their packets.

mod anybody;
mod endpoint;
mod parties;

use samport_common::conntrack::Openers;
use samport_common::wire::protocol::Protocol;

use parties::Parties;

/// Whatever packets come, in whatever order: no state is reached without what it stands for. And nobody who does not
/// know a connection's numbers ends it, or keeps its entry alive after its end.
pub fn check(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let openers = if kind & 2 == 0 { Openers::First } else { Openers::Any };
    if kind & 4 == 0 {
        let protocol = if kind & 1 == 0 { Protocol::Tcp } else { Protocol::Udp };
        anybody::check(protocol, openers, rest);
    } else if let Some(([c, d, b, e], events)) = rest.split_first_chunk() {
        let number = |high, low| u32::from_be_bytes([high, low, 0xff, low]);
        let mut parties = Parties::new(openers, number(*c, *d), number(*b, *e));
        for event in events.as_chunks().0 {
            parties.happens(*event);
        }
        parties.end(kind >> 3);
    }
}
