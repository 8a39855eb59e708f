//! The two interfaces that a node's data plane stands on: the uplink, which it finds, and the VXLAN
//! device, which it makes. Tasks' interfaces are elsewhere.

use tracing::debug;

use crate::error::{Error, LoadError};
use crate::net::{Interface, Net, errno, failed};
use crate::options::Options;

/// The interface that clients and nodes are reached through.
pub(crate) async fn find_uplink(net: &Net, options: &Options) -> Result<Interface, LoadError> {
    let addresses = net.addresses().await?;
    let holder = addresses.iter().find(|(_, address)| *address == options.data_path_addr);
    let found = match (&options.uplink, holder) {
        (Some(name), _) => net
            .by_name(name)
            .await?
            .ok_or_else(|| LoadError::Uplink(format!("interface {name} does not exist")))?,
        (None, Some((index, _))) => net
            .by_index(*index)
            .await?
            .ok_or_else(|| LoadError::Uplink(format!("interface {index} went away")))?,
        (None, None) => {
            let address = options.data_path_addr;
            return Err(LoadError::Uplink(format!("no interface has the address {address}")));
        }
    };
    if found.mac.is_none() {
        let name = found.name;
        return Err(LoadError::Uplink(format!("interface {name} is no Ethernet interface")));
    }
    Ok(found)
}

/// Why the VXLAN device could not be made or used.
pub(crate) fn vxlan_failed(
    error: rtnetlink::Error,
    options: &Options,
    what: &'static str,
) -> LoadError {
    match errno(&error) {
        Some(libc::EEXIST | libc::EADDRINUSE) => LoadError::VxlanPort { port: options.vxlan_port },
        _ => failed(&options.vxlan_name(), what)(error).into(),
    }
}

/// The VXLAN device, found or made. It is up only where its program has been attached.
pub(crate) async fn vxlan_device(net: &Net, options: &Options) -> Result<Interface, LoadError> {
    let name = options.vxlan_name();
    let port = options.vxlan_port;
    let mut device = net.by_name(&name).await?;
    if let Some(found) = &device {
        match found.vxlan {
            Some((held, true)) if held == port => {}
            Some((_, true)) => {
                net.remove(found.index).await?;
                device = None;
            }
            _ => {
                let alias = found.alias.clone();
                return Err(Error::Taken { interface: name, alias }.into());
            }
        }
    }
    if device.is_none() {
        let made = net.add_vxlan(&name, port).await;
        made.map_err(|error| vxlan_failed(error, options, "make it"))?;
        device = net.by_name(&name).await?;
    }
    let device = device.ok_or_else(|| Error::Missing { interface: name.clone() })?;
    if let Err(error) = net.no_own_address(device.index).await {
        debug!(%error, interface = %name, "the kernel gives it an IPv6 address of its own");
    }
    Ok(device)
}
