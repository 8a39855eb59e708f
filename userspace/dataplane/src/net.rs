//! Interfaces, addresses and routes over rtnetlink, in the words of this crate.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder};
use shoal_datapath::abi::Mac;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::sys;

/// What we ask of an interface.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) alias: String,
    /// Index of the other end of a veth, in its own namespace.
    pub(crate) peer: Option<u32>,
    /// Port and collect-metadata mode of a VXLAN device.
    pub(crate) vxlan: Option<(u16, bool)>,
}

/// A netlink socket in one network namespace. Closed when dropped.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A task's side of its veth.
pub(crate) struct TaskSide<'a> {
    pub(crate) netns: BorrowedFd<'a>,
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

impl Net {
    /// In the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// In another namespace.
    pub(crate) fn open_in(netns: BorrowedFd<'_>) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = sys::in_netns(netns, || {
            // The socket registers itself with the runtime, which drives it from anywhere.
            let _runtime = runtime.enter();
            rtnetlink::new_connection()
        })?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// The interface of this name, if there is one.
    pub(crate) async fn by_name(&self, name: &str) -> Result<Option<Interface>, Error> {
        let request = self.handle.link().get().match_name(name);
        found(request.execute().boxed().try_next().await, name)
    }

    /// The interface of this index, if there is one.
    pub(crate) async fn by_index(&self, index: u32) -> Result<Option<Interface>, Error> {
        let request = self.handle.link().get().match_index(index);
        found(request.execute().boxed().try_next().await, &index.to_string())
    }

    /// All interfaces.
    pub(crate) async fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("*", "list interfaces"))?;
        Ok(links.into_iter().map(Interface::from).collect())
    }

    /// Addresses of global scope, with the index of their interface.
    pub(crate) async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, Error> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("*", "list addresses"))?;
        Ok(messages.iter().filter_map(global_address).collect())
    }

    /// Makes a VXLAN device that takes tunnel keys from programs. It is not up yet.
    pub(crate) async fn add_vxlan(&self, name: &str, port: u16) -> Result<(), rtnetlink::Error> {
        // Metadata mode: remote, VNI and checksum come with each packet. No device below it, so
        // its MTU is its own; a packet of GRO may be as large as IP allows.
        let message = LinkMessageBuilder::<LinkVxlan>::new(name)
            .append_info_data(InfoVxlan::CollectMetadata(true))
            .append_info_data(InfoVxlan::Learning(false))
            .append_info_data(InfoVxlan::UDPZeroCsumRX(true))
            .port(port)
            .mtu(65_535 - 50)
            .build();
        self.handle.link().add(message).execute().await
    }

    /// Makes a veth with one end here and the other, named and addressed, in the task's namespace.
    pub(crate) async fn add_veth(
        &self,
        name: &str,
        mtu: u32,
        task: &TaskSide<'_>,
    ) -> Result<(), rtnetlink::Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(task.name)
            .mtu(mtu)
            .address(task.mac.to_vec())
            .setns_by_fd(task.netns.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new(name, task.name)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(message).execute().await
    }

    /// Keeps the kernel from giving an interface an IPv6 address of its own: its router and
    /// listener messages would be the only packets there that nobody asked for.
    pub(crate) async fn no_own_address(&self, index: u32) -> Result<(), rtnetlink::Error> {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(spec).build();
        self.handle.link().set(message).execute().await
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<(), rtnetlink::Error> {
        self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
    }

    pub(crate) async fn set_alias(&self, index: u32, alias: &str) -> Result<(), rtnetlink::Error> {
        let message = LinkUnspec::new_with_index(index).alias(alias).build();
        self.handle.link().set(message).execute().await
    }

    /// Removes an interface; that it is gone already is no error.
    pub(crate) async fn remove(&self, index: u32) -> Result<(), Error> {
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(()),
            result => result.map_err(failed(&index.to_string(), "remove it")),
        }
    }

    /// Gives an interface an address without a route to its network: everything goes by the
    /// default route, since on our networks nobody answers ARP.
    pub(crate) async fn add_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), rtnetlink::Error> {
        let mut request = self.handle.address().add(index, address, prefix).replace();
        let message = request.message_mut();
        let mut flags = AddressFlags::Noprefixroute;
        if address.is_ipv6() {
            flags |= AddressFlags::Nodad;
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes.push(AddressAttribute::Flags(flags));
        request.execute().await
    }

    /// Sends everything to a gateway that no prefix covers.
    pub(crate) async fn add_default_route(
        &self,
        index: u32,
        gateway: IpAddr,
    ) -> Result<(), rtnetlink::Error> {
        let message = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .output_interface(index)
                .gateway(gateway)
                .onlink()
                .build(),
            IpAddr::V6(gateway) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .output_interface(index)
                .gateway(gateway)
                .onlink()
                .build(),
        };
        self.handle.route().add(message).replace().execute().await
    }

    /// Makes an address known for good, so that nobody asks for it.
    pub(crate) async fn add_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), rtnetlink::Error> {
        let request = self.handle.neighbours().add(index, address).link_layer_address(&mac);
        request.replace().execute().await
    }
}

/// The kernel's error number, if it is the kernel that refused.
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

/// For `map_err`: what was tried on which interface.
pub(crate) fn failed(
    interface: &str,
    what: &'static str,
) -> impl FnOnce(rtnetlink::Error) -> Error {
    let interface = interface.to_owned();
    move |cause| Error::Interface { interface, what, cause }
}

fn found(
    result: Result<Option<LinkMessage>, rtnetlink::Error>,
    name: &str,
) -> Result<Option<Interface>, Error> {
    match result {
        Ok(message) => Ok(message.map(Interface::from)),
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(failed(name, "read it")(error)),
    }
}

/// The address in a message, if clients can use it: neither of link or host scope, nor still being
/// probed, nor a leftover.
fn global_address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    // With a peer, `Local` is the own address; without, IPv6 has only `Address`.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Some((message.header.index, local.or(address)?))
}

impl From<LinkMessage> for Interface {
    fn from(message: LinkMessage) -> Self {
        let mut interface = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Address(address) => interface.mac = address.try_into().ok(),
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                LinkAttribute::IfAlias(alias) => interface.alias = alias,
                LinkAttribute::Link(peer) => interface.peer = Some(peer),
                LinkAttribute::LinkInfo(infos) => interface.vxlan = vxlan(&infos),
                _ => {}
            }
        }
        interface
    }
}

fn vxlan(infos: &[LinkInfo]) -> Option<(u16, bool)> {
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    let mut found = (0, false);
    for info in data {
        match info {
            InfoVxlan::Port(port) => found.0 = *port,
            InfoVxlan::CollectMetadata(on) => found.1 = *on,
            _ => {}
        }
    }
    Some(found)
}
