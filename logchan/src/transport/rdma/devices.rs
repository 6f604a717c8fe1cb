//! Which RDMA ports this host has.

use rdma_sys as sys;
use std::ffi::CStr;
use std::io;
use std::net::Ipv6Addr;

use crate::transport::TransportError;

/// GIDs of a port that are looked at.
const GIDS: i32 = 16;

/// A port of an RDMA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The device's name, as in `rdma link`.
    pub device: String,
    /// Number, from 1.
    pub port: u8,
    /// What libibverbs calls its state.
    pub state: String,
    /// Whether the port can carry anything.
    pub active: bool,
    /// Ethernet (RoCE) or InfiniBand.
    pub link: &'static str,
    /// Bytes of payload in a packet.
    pub mtu: u32,
    /// Its addresses; with RoCE, IPv4 addresses show as such.
    pub gids: Vec<String>,
}

/// All ports of all devices that this process sees.
///
/// # Errors
/// libibverbs cannot list devices.
pub fn ports() -> Result<Vec<Port>, TransportError> {
    let mut count = 0;
    // SAFETY: room for one number; the list is checked and given back.
    let list = unsafe { sys::ibv_get_device_list(&raw mut count) };
    if list.is_null() {
        let error = io::Error::last_os_error();
        // No kernel support at all: then there are none.
        return match error.raw_os_error() {
            Some(libc::ENOSYS) => Ok(Vec::new()),
            _ => Err(TransportError::io("list RDMA devices")(error)),
        };
    }
    let mut ports = Vec::new();
    for n in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: so many entries are in the list, each a live device until the list is given back.
        let (name, context) = unsafe {
            let device = *list.add(n);
            (CStr::from_ptr(sys::ibv_get_device_name(device)), sys::ibv_open_device(device))
        };
        if context.is_null() {
            continue;
        }
        ports_of(&name.to_string_lossy(), context, &mut ports);
        // SAFETY: opened above, and used no more.
        unsafe { sys::ibv_close_device(context) };
    }
    // SAFETY: from `ibv_get_device_list`.
    unsafe { sys::ibv_free_device_list(list) };
    Ok(ports)
}

fn ports_of(device: &str, context: *mut sys::ibv_context, ports: &mut Vec<Port>) {
    for port in 1..=u8::MAX {
        // SAFETY: all zeros is a valid value.
        let mut found: sys::ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: a live context, and room for the answer; a port that is not there is refused.
        if unsafe { sys::___ibv_query_port(context, port, &raw mut found) } != 0 {
            return;
        }
        // SAFETY: any number gets a static text.
        let state = unsafe { CStr::from_ptr(sys::ibv_port_state_str(found.state)) };
        let gids = (0..found.gid_tbl_len.min(GIDS)).filter_map(|index| {
            let mut gid = sys::ibv_gid { raw: [0; 16] };
            // SAFETY: a live context, a port of it, an index within its table, room for the answer.
            let got = unsafe { sys::ibv_query_gid(context, port, index, &raw mut gid) };
            // SAFETY: both fields are plain bytes.
            let address = Ipv6Addr::from(unsafe { gid.raw });
            (got == 0 && !address.is_unspecified()).then(|| match address.to_ipv4_mapped() {
                Some(address) => address.to_string(),
                None => address.to_string(),
            })
        });
        ports.push(Port {
            device: device.to_owned(),
            port,
            state: state.to_string_lossy().into_owned(),
            active: found.state == sys::ibv_port_state::IBV_PORT_ACTIVE,
            // infiniband/verbs.h: IBV_LINK_LAYER_ETHERNET is 2.
            link: if found.link_layer == 2 { "Ethernet" } else { "InfiniBand" },
            mtu: 128_u32.checked_shl(found.active_mtu).unwrap_or(0),
            gids: gids.collect(),
        });
    }
}
