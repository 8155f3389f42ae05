//! Links, addresses, routes and neighbours over rtnetlink, in this and in other network namespaces.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use coracle_cri::NetworkError;
use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteProtocol, RouteScope};
use rtnetlink::{Error, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};

/// The gateway that every pod sees; no interface has it.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The link-layer address of every host end: point-to-point links may share one.
const HOST_MAC: [u8; 6] = [0xee; 6];
/// Marks our routes (`ip route` shows `proto 99`).
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(99);
const LO: u32 = 1;

fn failed(what: impl Into<String>) -> impl FnOnce(Error) -> NetworkError {
    let what = what.into();
    move |e| {
        let cause = match &e {
            Error::NetlinkError(message) => message.to_io().to_string(),
            other => other.to_string(),
        };
        NetworkError::Kernel { what, cause }
    }
}

fn errno(e: &Error) -> i32 {
    match e {
        Error::NetlinkError(message) => message.raw_code().abs(),
        _ => 0,
    }
}

/// A success also if the thing is already as wanted, or already gone.
fn tolerate(result: Result<(), Error>, codes: &[i32]) -> Result<(), Error> {
    result.or_else(|e| if codes.contains(&errno(&e)) { Ok(()) } else { Err(e) })
}

/// Connected to one network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Links(Handle);

impl Links {
    /// In the calling thread's network namespace.
    pub fn here() -> Result<Self, NetworkError> {
        let (connection, handle, _) = new_connection().map_err(|e| NetworkError::Kernel {
            what: "open a netlink socket".into(),
            cause: e.to_string(),
        })?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// In the namespace at `path`: a thread enters it, opens the socket and ends. The socket stays there.
    pub fn inside(netns: &File, path: &Path) -> Result<Self, NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        let fail = |cause: String| NetworkError::Kernel { what: format!("enter {}", path.display()), cause };
        let entered = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _inside = runtime.enter();
                nix::sched::setns(netns.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)
                    .map_err(|e| fail(e.to_string()))?;
                Self::here()
            });
            thread.join()
        });
        entered.unwrap_or_else(|_| Err(fail("the thread panicked".into())))
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>, Error> {
        let found = self.0.link().get().match_name(name).execute().try_next().await;
        match found {
            Err(e) if errno(&e) == libc::ENODEV => Ok(None),
            other => other,
        }
    }

    /// The index of a link; `None` if there is none of that name.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let found = self.find(name).await.map_err(failed(format!("find link {name}")))?;
        Ok(found.map(|link| link.header.index))
    }

    /// Makes a pair: `eth0` in the namespace, up, and `host` here, which [`Links::up`] brings up (a veth
    /// cannot be up before it has its peer).
    pub async fn add_pair(
        &self,
        host: &str,
        netns: &File,
        pod_mac: [u8; 6],
        mtu: u32,
    ) -> Result<(), NetworkError> {
        let host_end = rtnetlink::LinkMessageBuilder::<LinkUnspec>::new()
            .name(host)
            .address(HOST_MAC.to_vec())
            .mtu(mtu)
            .build();
        let pair = LinkVeth::new("eth0", host)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(host_end)))
            .address(pod_mac.to_vec())
            .mtu(mtu)
            .setns_by_fd(netns.as_raw_fd())
            .up()
            .build();
        self.0.link().add(pair).execute().await.map_err(failed(format!("make link {host}")))
    }

    /// Brings a link up.
    pub async fn up(&self, index: u32) -> Result<(), NetworkError> {
        let up = LinkUnspec::new_with_index(index).up().build();
        self.0.link().set(up).execute().await.map_err(failed(format!("bring link {index} up")))
    }

    /// Inside a pod: `lo` up, the address, the gateway and the default route.
    pub async fn configure_pod(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        let what = |what: &str| failed(format!("configure eth0 of the pod at {address}: {what}"));
        let Some(eth0) = self.index("eth0").await? else {
            return Err(NetworkError::Kernel {
                what: "configure eth0".into(),
                cause: "it is not there".into(),
            });
        };
        self.up(LO).await?;
        let add = self.0.address().add(eth0, IpAddr::V4(address), 32).replace();
        add.execute().await.map_err(what("address"))?;
        let gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(GATEWAY, 32)
            .output_interface(eth0)
            .scope(RouteScope::Link)
            .build();
        self.0.route().add(gateway).replace().execute().await.map_err(what("route to the gateway"))?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).output_interface(eth0).build();
        self.0.route().add(default).replace().execute().await.map_err(what("default route"))?;
        self.neighbour(eth0, GATEWAY, HOST_MAC).await
    }

    /// A neighbour that needs no ARP.
    async fn neighbour(&self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Result<(), NetworkError> {
        let add = self.0.neighbours().add(index, IpAddr::V4(address));
        let add = add.link_layer_address(&mac).state(NeighbourState::Permanent).replace();
        add.execute().await.map_err(failed(format!("add neighbour {address}")))
    }

    /// Here: the way to a pod.
    pub async fn route_to_pod(
        &self,
        link: u32,
        address: Ipv4Addr,
        mac: [u8; 6],
        source: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        self.neighbour(link, address, mac).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(link)
            .scope(RouteScope::Link)
            .protocol(ROUTE_PROTOCOL)
            .pref_source(source)
            .build();
        let add = self.0.route().add(route).replace();
        add.execute().await.map_err(failed(format!("add route to pod {address}")))
    }

    /// Removes a link; a success if it is not there.
    pub async fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        let removed = self.0.link().del(index).execute().await;
        tolerate(removed, &[libc::ENODEV]).map_err(failed(format!("remove link {name}")))
    }

    /// The names of all links that begin with `prefix` and are of the length that ours have.
    pub async fn names(&self, prefix: &str) -> Result<Vec<String>, NetworkError> {
        let all: Vec<LinkMessage> =
            self.0.link().get().execute().try_collect().await.map_err(failed("list links"))?;
        let name = |link: LinkMessage| {
            link.attributes
                .into_iter()
                .find_map(|a| if let LinkAttribute::IfName(n) = a { Some(n) } else { None })
        };
        let ours = |n: &String| n.starts_with(prefix) && n.len() == prefix.len() + 8;
        Ok(all.into_iter().filter_map(name).filter(ours).collect())
    }

    /// The MTU of the default route's link; 1500 without a default route.
    pub async fn default_mtu(&self) -> u32 {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<_> = self.0.route().get(query).execute().try_collect().await.unwrap_or_default();
        let default = routes.iter().find(|route| {
            route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
        });
        let link = default.and_then(|route| {
            route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None })
        });
        let Some(link) = link else { return 1500 };
        let found = self.0.link().get().match_index(link).execute().try_next().await;
        let mtu = found.ok().flatten().and_then(|link| {
            link.attributes
                .iter()
                .find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None })
        });
        mtu.unwrap_or(1500)
    }

    /// Puts an address on `lo`.
    pub async fn add_local(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        self.up(LO).await?;
        let added = self.0.address().add(LO, IpAddr::V4(address), 32).replace().execute().await;
        tolerate(added, &[libc::EEXIST]).map_err(failed(format!("add {address} to lo")))
    }

    /// Takes an address off `lo`.
    pub async fn remove_local(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        let found: Vec<_> = self
            .0
            .address()
            .get()
            .set_link_index_filter(LO)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses of lo"))?;
        let is_it =
            |a: &AddressAttribute| matches!(a, AddressAttribute::Local(IpAddr::V4(x)) if *x == address);
        for message in found.into_iter().filter(|m| m.attributes.iter().any(is_it)) {
            let removed = self.0.address().del(message).execute().await;
            tolerate(removed, &[libc::EADDRNOTAVAIL]).map_err(failed(format!("remove {address} from lo")))?;
        }
        Ok(())
    }

    fn range_route(base: Ipv4Addr, length: u8) -> RouteMessageBuilder<Ipv4Addr> {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(base, length)
            .output_interface(LO)
            .scope(RouteScope::Link)
            .protocol(ROUTE_PROTOCOL)
    }

    /// A route for a range that ends here, so that the node's own packets get a source address before the
    /// rules of services give them a destination.
    pub async fn route_here(&self, base: Ipv4Addr, length: u8, source: Ipv4Addr) -> Result<(), NetworkError> {
        let route = Self::range_route(base, length).pref_source(source).build();
        let add = self.0.route().add(route).replace();
        add.execute().await.map_err(failed(format!("add route to {base}/{length}")))
    }

    /// Takes [`Links::route_here`] back.
    pub async fn unroute_here(&self, base: Ipv4Addr, length: u8) -> Result<(), NetworkError> {
        let route = Self::range_route(base, length).build();
        let removed = self.0.route().del(route).execute().await;
        tolerate(removed, &[libc::ESRCH]).map_err(failed(format!("remove route to {base}/{length}")))
    }
}

/// A pod's link-layer address: follows from its address.
pub(crate) fn pod_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}
