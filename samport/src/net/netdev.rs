//! What a device says of itself beyond its link: the kernel's generic netlink family "netdev" (Linux 6.3).

use std::io;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, Nla as _, NlasIterator, Parseable as _,
    ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

use crate::net::sock_diag::limit_waits;

/// `NETDEV_CMD_DEV_GET` and attributes of a device, in linux/netdev.h.
const DEV_GET: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_NDO_XMIT`: XDP programs may redirect frames to it.
const TAKES_FRAMES: u64 = 1 << 2;

/// Whether frames that an XDP program redirects to a device arrive as they are: at a veth, if the other end polls,
/// because receive offload (GRO) is on there.
///
/// # Errors
/// A kernel before 6.3, or no such device.
pub fn takes_frames(ifindex: u32) -> io::Result<bool> {
    let socket = Socket::new(NETLINK_GENERIC)?;
    limit_waits(&socket)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family = family(&socket)?;
    let mut question = GenlMessage::from_payload(Device(vec![attribute(IFINDEX, ifindex)]));
    question.set_resolved_family_id(family);
    let Device(attributes) = ask(&socket, question)?;
    let features = attributes.iter().find(|attribute| attribute.kind() == XDP_FEATURES);
    let mut bytes = [0; size_of::<u64>()];
    if let Some(features) = features.filter(|features| features.value_len() == bytes.len()) {
        features.emit_value(&mut bytes);
    }
    Ok(u64::from_ne_bytes(bytes) & TAKES_FRAMES != 0)
}

/// The number this kernel has given the family.
fn family(socket: &Socket) -> io::Result<u16> {
    let name = GenlCtrlAttrs::FamilyName(Device::family_name().to_owned());
    let question = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] };
    let answer = ask(socket, GenlMessage::from_payload(question))?;
    let number = answer.nlas.iter().find_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(number) => Some(*number),
        _ => None,
    });
    number.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn ask<F>(socket: &Socket, question: GenlMessage<F>) -> io::Result<F>
where
    F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + std::fmt::Debug,
    GenlMessage<F>: NetlinkSerializable + NetlinkDeserializable,
{
    let mut message = NetlinkMessage::from(question);
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<GenlMessage<F>>::deserialize(&bytes);
    let answer =
        answer.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
    match answer?.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(answer.payload),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn attribute(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

/// A device's attributes, asked for and answered.
#[derive(Debug)]
struct Device(Vec<DefaultNla>);

impl GenlFamily for Device {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Device {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(bytes).map(|attribute| DefaultNla::parse(&attribute?));
        attributes.collect::<Result<_, _>>().map(Self)
    }
}
