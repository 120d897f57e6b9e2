//! What the programs validate sources by: `DEVICES`, `SOURCES4` and `SOURCES6`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use samport_common::layout::{DeviceInfo, DeviceSet, MAX_SOURCES};

use super::maps::{MapCell, if_there, typed};

/// The three maps.
pub(super) struct Sources {
    devices: HashMap<MapData, u32, MapCell<DeviceInfo>>,
    v4: HashMap<MapData, [u8; 4], MapCell<DeviceSet>>,
    v6: HashMap<MapData, [u8; 16], MapCell<DeviceSet>>,
}

impl Sources {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            devices: typed(ebpf, "DEVICES")?,
            v4: typed(ebpf, "SOURCES4")?,
            v6: typed(ebpf, "SOURCES6")?,
        })
    }

    pub(super) fn set_device(&mut self, ifindex: u32, device: DeviceInfo) -> Result<()> {
        Ok(self.devices.insert(ifindex, MapCell(device), 0)?)
    }

    pub(super) fn remove_device(&mut self, ifindex: u32) -> Result<()> {
        if_there(self.devices.remove(&ifindex))
    }

    pub(super) fn set(&mut self, addr: IpAddr, devices: DeviceSet) -> Result<()> {
        let set = match addr {
            IpAddr::V4(addr) => self.v4.insert(addr.octets(), MapCell(devices), 0),
            IpAddr::V6(addr) => self.v6.insert(addr.octets(), MapCell(devices), 0),
        };
        set.with_context(|| format!("there is room for {MAX_SOURCES} addresses of a family"))
    }

    pub(super) fn remove(&mut self, addr: IpAddr) -> Result<()> {
        if_there(match addr {
            IpAddr::V4(addr) => self.v4.remove(&addr.octets()),
            IpAddr::V6(addr) => self.v6.remove(&addr.octets()),
        })
    }

    pub(super) fn all_devices(&self) -> Result<BTreeMap<u32, DeviceInfo>> {
        self.devices
            .iter()
            .map(|entry| {
                entry.map(|(ifindex, MapCell(device))| (ifindex, device)).map_err(Into::into)
            })
            .collect()
    }

    pub(super) fn all(&self) -> Result<BTreeMap<IpAddr, DeviceSet>> {
        let mut all = BTreeMap::new();
        for entry in &self.v4 {
            let (addr, MapCell(devices)) = entry?;
            all.insert(addr.into(), devices);
        }
        for entry in &self.v6 {
            let (addr, MapCell(devices)) = entry?;
            all.insert(addr.into(), devices);
        }
        Ok(all)
    }
}
