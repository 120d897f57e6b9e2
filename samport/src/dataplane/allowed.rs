//! Who may be served by restricted services: tries of networks, each under its service's number.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use aya::Ebpf;
use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use ipnet::IpNet;
use samport_common::flow::ServiceId;

use super::maps::{if_there, typed};

/// Bits of the service's number, which a key begins with.
const SERVICE_BITS: u32 = u16::BITS;

/// `ALLOWED4` and `ALLOWED6`. The programs ask only whether a client is in.
pub(super) struct Allowed {
    v4: LpmTrie<MapData, [u8; 6], u8>,
    v6: LpmTrie<MapData, [u8; 18], u8>,
}

impl Allowed {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self { v4: typed(ebpf, "ALLOWED4")?, v6: typed(ebpf, "ALLOWED6")? })
    }

    pub(super) fn add(&mut self, service: ServiceId, net: IpNet) -> Result<()> {
        match net {
            IpNet::V4(net) => {
                self.v4.insert(&key(service, net.network().octets(), net.prefix_len()), 1, 0)?;
            }
            IpNet::V6(net) => {
                self.v6.insert(&key(service, net.network().octets(), net.prefix_len()), 1, 0)?;
            }
        }
        Ok(())
    }

    /// All networks, each under its service's number.
    pub(super) fn all(&self) -> Result<BTreeSet<(ServiceId, IpNet)>> {
        let mut all = BTreeSet::new();
        for key in self.v4.keys() {
            let key = key?;
            let [upper, lower, a, b, c, d] = key.data();
            all.extend(network(&key, [upper, lower], [a, b, c, d].into()));
        }
        for key in self.v6.keys() {
            let key = key?;
            let [upper, lower, addr @ ..] = key.data();
            all.extend(network(&key, [upper, lower], addr.into()));
        }
        Ok(all)
    }

    /// Removes a network; one that is not there is fine.
    pub(super) fn remove(&mut self, service: ServiceId, net: IpNet) -> Result<()> {
        if_there(match net {
            IpNet::V4(net) => {
                self.v4.remove(&key(service, net.network().octets(), net.prefix_len()))
            }
            IpNet::V6(net) => {
                self.v6.remove(&key(service, net.network().octets(), net.prefix_len()))
            }
        })
    }
}

/// The service and the network a key stands for.
fn network<D: aya::Pod>(
    key: &Key<D>,
    service: [u8; 2],
    addr: IpAddr,
) -> Option<(ServiceId, IpNet)> {
    let prefix = u8::try_from(key.prefix_len().checked_sub(SERVICE_BITS)?).ok()?;
    let service = ServiceId::new(u16::from_be_bytes(service))?;
    Some((service, IpNet::new(addr, prefix).ok()?))
}

/// The service's number in network order, then the address: all of the first and `prefix_len` bits of
/// the second count.
pub(super) fn key<const ADDR: usize, const DATA: usize>(
    service: ServiceId,
    addr: [u8; ADDR],
    prefix_len: u8,
) -> Key<[u8; DATA]> {
    const { assert!(DATA == 2 + ADDR) };
    let mut data = [0; DATA];
    data[..2].copy_from_slice(&service.get().to_be_bytes());
    data[2..].copy_from_slice(&addr);
    Key::new(SERVICE_BITS + u32::from(prefix_len), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_service_and_then_the_network() {
        let service = ServiceId::new(0x0102).unwrap();
        let v4: Key<[u8; 6]> = key(service, [10, 0, 0, 0], 8);
        assert_eq!((v4.prefix_len(), v4.data()), (24, [1, 2, 10, 0, 0, 0]));
        let v6: Key<[u8; 18]> = key(service, [9; 16], 128);
        assert_eq!((v6.prefix_len(), v6.data()[..3].to_vec()), (144, vec![1, 2, 9]));
        let net: IpNet = "10.0.0.0/8".parse().unwrap();
        assert_eq!(network(&v4, [1, 2], [10, 0, 0, 0].into()), Some((service, net)));
    }
}
