//! Cluster IPs and node ports of Services.
//!
//! Reservations live in memory and are rebuilt from the stored Services at start; where other processes write
//! too, whenever a Service changes. A reservation made for a write that fails is given back when its
//! [`Allocation`] is dropped.

mod families;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::{Object, Reason, Status};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use parking_lot::Mutex;
use rand::Rng;

/// The allocator.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    first: u32,
    size: u32,
    cidr: Arc<str>,
    ports: (u16, u16),
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    addresses: HashSet<u32>,
    numbers: HashSet<u16>,
    /// Of these, what no stored Service holds yet.
    flying_addresses: HashSet<u32>,
    flying_numbers: HashSet<u16>,
}

impl Taken {
    fn address(&mut self, address: u32) -> bool {
        let fresh = self.addresses.insert(address);
        if fresh {
            self.flying_addresses.insert(address);
        }
        fresh
    }

    fn number(&mut self, number: u16) -> bool {
        let fresh = self.numbers.insert(number);
        if fresh {
            self.flying_numbers.insert(number);
        }
        fresh
    }

    fn landed(&mut self, allocation: &Allocation) {
        for address in &allocation.addresses {
            self.flying_addresses.remove(address);
        }
        for port in &allocation.ports {
            self.flying_numbers.remove(port);
        }
    }
}

/// Reservations of one write; given back when dropped, unless [`Allocation::keep`] was called.
#[derive(Debug)]
pub(crate) struct Allocation {
    owner: Option<Services>,
    addresses: Vec<u32>,
    ports: Vec<u16>,
    /// Given back once the write has succeeded.
    freed_addresses: Vec<u32>,
    freed_ports: Vec<u16>,
    /// Nothing is reserved then, and ports may be out of range, as upstream has it.
    dry_run: bool,
}

impl Allocation {
    /// Reserves nothing.
    pub(crate) fn none() -> Self {
        Self {
            owner: None,
            addresses: Vec::new(),
            ports: Vec::new(),
            freed_addresses: Vec::new(),
            freed_ports: Vec::new(),
            dry_run: false,
        }
    }

    /// The write succeeded: the reservations stay, what it gave up is free.
    pub(crate) fn keep(mut self) {
        if let Some(owner) = self.owner.take() {
            let mut taken = owner.taken.lock();
            taken.landed(&self);
            for address in &self.freed_addresses {
                taken.addresses.remove(address);
            }
            for port in &self.freed_ports {
                taken.numbers.remove(port);
            }
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(owner) = &self.owner {
            let mut taken = owner.taken.lock();
            taken.landed(self);
            for address in &self.addresses {
                taken.addresses.remove(address);
            }
            for port in &self.ports {
                taken.numbers.remove(port);
            }
        }
    }
}

impl Services {
    /// An allocator over a range such as `10.96.0.0/16`; `None` when it is malformed or too small.
    pub(crate) fn new(cidr: &str, ports: (u16, u16)) -> Option<Self> {
        let (base, bits) = cidr.split_once('/')?;
        let base: Ipv4Addr = base.parse().ok()?;
        let bits: u32 = bits.parse().ok().filter(|b| (8..=30).contains(b))?;
        let size = 1u32 << (32 - bits);
        let first = u32::from(base) & !(size - 1);
        let taken = Arc::new(Mutex::new(Taken::default()));
        Some(Self { first, size, cidr: cidr.into(), ports, taken })
    }

    /// The range.
    pub(crate) fn cidr(&self) -> &str {
        &self.cidr
    }

    /// The n-th address of the range.
    pub(crate) fn address(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + n)
    }

    /// Notes what a stored Service holds.
    pub(crate) fn adopt(&self, obj: &dyn Object) {
        let Some(spec) = obj.downcast::<Service>().and_then(|s| s.spec.as_ref()) else { return };
        let mut taken = self.taken.lock();
        taken.addresses.extend(addresses(spec));
        taken.numbers.extend(node_ports(spec));
    }

    /// Makes the reservations those of the Services given, and of writes under way: what other API servers on the
    /// same store have given out and taken back.
    pub(crate) fn resync<'a>(&self, stored: impl Iterator<Item = &'a ServiceSpec>) {
        let mut taken = self.taken.lock();
        taken.addresses = taken.flying_addresses.clone();
        taken.numbers = taken.flying_numbers.clone();
        for spec in stored {
            taken.addresses.extend(addresses(spec));
            taken.numbers.extend(node_ports(spec));
        }
    }

    /// Gives back what a deleted Service held.
    pub(crate) fn release(&self, obj: &dyn Object) {
        let Some(spec) = obj.downcast::<Service>().and_then(|s| s.spec.as_ref()) else { return };
        let mut taken = self.taken.lock();
        for address in addresses(spec) {
            taken.addresses.remove(&address);
        }
        for port in node_ports(spec) {
            taken.numbers.remove(&port);
        }
    }

    /// Reserves and fills in what a new or changed Service needs. Other kinds need nothing.
    ///
    /// # Errors
    /// 422 when a requested address or port is taken or out of range, 500 when the range is full.
    pub(crate) fn allocate(
        &self,
        obj: &mut dyn Object,
        old: Option<&dyn Object>,
        dry_run: bool,
    ) -> Result<Allocation, Status> {
        let Some(service) = obj.downcast_mut::<Service>() else { return Ok(Allocation::none()) };
        let old = old.and_then(|o| o.downcast::<Service>()).and_then(|s| s.spec.as_ref());
        let name = service.metadata.name.clone().unwrap_or_default();
        let spec = service.spec.get_or_insert_default();
        if let Some(old) = old {
            families::keep_allocated(spec, old);
        }
        families::pair_up(spec, old);
        let mut errs = ErrorList::new();
        families::choose(service, old, &mut errs);
        if !errs.is_empty() {
            return Err(Status::invalid("", "Service", &name, &errs));
        }
        let spec = service.spec.get_or_insert_default();
        let mut held = Allocation::none();
        held.dry_run = dry_run;
        held.owner = (!dry_run).then(|| self.clone());
        self.allocate_address(spec, old, &mut held, &mut errs)?;
        self.allocate_ports(spec, old, &mut held, &mut errs)?;
        if !errs.is_empty() {
            return Err(Status::invalid("", "Service", &name, &errs));
        }
        Ok(held)
    }

    fn allocate_address(
        &self,
        spec: &mut ServiceSpec,
        old: Option<&ServiceSpec>,
        held: &mut Allocation,
        errs: &mut ErrorList,
    ) -> Result<(), Status> {
        let before: Vec<u32> = old.map(addresses).unwrap_or_default();
        let given = spec.cluster_ips.as_ref().and_then(|ips| ips.first()).cloned().unwrap_or_default();
        if !families::needs_address(spec) || given == "None" {
            held.freed_addresses = before;
            return Ok(());
        }
        let number = match given.parse::<Ipv4Addr>() {
            Ok(address) => {
                let number = u32::from(address);
                // A dry run asks only whether the address is in the range.
                if held.dry_run {
                    if let Some(why) = self.outside(number) {
                        errs.invalid("spec.clusterIPs", serde_json::json!(spec.cluster_ips), why);
                        return Ok(());
                    }
                } else if !before.contains(&number) {
                    if let Some(why) = self.take_address(number) {
                        errs.invalid("spec.clusterIPs", serde_json::json!(spec.cluster_ips), why);
                        return Ok(());
                    }
                    held.addresses.push(number);
                }
                number
            }
            // A dry run gets the range's own address.
            Err(_) if held.dry_run => self.first,
            Err(_) => {
                let number = self.pick_address()?;
                held.addresses.push(number);
                number
            }
        };
        held.freed_addresses = before.into_iter().filter(|b| *b != number).collect();
        let ip = Ipv4Addr::from(number).to_string();
        spec.cluster_ip = Some(ip.clone());
        match spec.cluster_ips.get_or_insert_default().first_mut() {
            Some(first) => *first = ip,
            None => spec.cluster_ips = Some(vec![ip]),
        }
        Ok(())
    }

    /// Why an address is not of the range.
    fn outside(&self, number: u32) -> Option<String> {
        let (cidr, ip) = (&self.cidr, Ipv4Addr::from(number));
        (number <= self.first || number >= self.first + self.size - 1).then(|| {
            format!(
                "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of \
                 valid IPs is {cidr}"
            )
        })
    }

    /// Reserves an address; the reason when it cannot be had.
    fn take_address(&self, number: u32) -> Option<String> {
        if let Some(why) = self.outside(number) {
            return Some(why);
        }
        let fresh = self.taken.lock().address(number);
        (!fresh).then(|| {
            format!("failed to allocate IP {}: provided IP is already allocated", Ipv4Addr::from(number))
        })
    }

    /// A random free address, first from the part of the range not meant for requests by address.
    fn pick_address(&self) -> Result<u32, Status> {
        let reserved = (self.size / 16).clamp(16, 256).min(self.size / 2);
        let mut taken = self.taken.lock();
        let upper = (reserved, self.size - 1);
        for (low, high) in [upper, (1, reserved)] {
            if low >= high {
                continue;
            }
            let span = high - low;
            let start = rand::rng().random_range(0..span);
            for i in 0..span {
                let number = self.first + low + (start + i) % span;
                if taken.address(number) {
                    return Ok(number);
                }
            }
        }
        Err(Status::internal("failed to allocate a serviceIP: range is full"))
    }

    fn allocate_ports(
        &self,
        spec: &mut ServiceSpec,
        old: Option<&ServiceSpec>,
        held: &mut Allocation,
        errs: &mut ErrorList,
    ) -> Result<(), Status> {
        let before: Vec<u16> = old.map(node_ports).unwrap_or_default();
        let balanced = spec.type_.as_deref() == Some("LoadBalancer");
        if balanced || spec.type_.as_deref() == Some("NodePort") {
            self.allocate_numbers(spec, old.is_none(), &before, held, errs)?;
        }
        if families::needs_health_port(spec) {
            let asked = u16::try_from(spec.health_check_node_port.unwrap_or(0)).unwrap_or(0);
            if asked == 0 {
                let number = self.pick_port(held)?;
                held.ports.push(number);
                spec.health_check_node_port = Some(i32::from(number));
            } else if !before.contains(&asked) {
                if let Some(why) = self.take_port(asked, held) {
                    let what = format!("failed to allocate requested HealthCheck NodePort {asked}: {why}");
                    return Err(Status::internal(what));
                }
                held.ports.push(asked);
            }
        }
        let kept = node_ports(spec);
        held.freed_ports = before.into_iter().filter(|p| !kept.contains(p)).collect();
        Ok(())
    }

    /// Node ports; ports of a `fresh` service that differ in the protocol only share one.
    fn allocate_numbers(
        &self,
        spec: &mut ServiceSpec,
        fresh: bool,
        before: &[u16],
        held: &mut Allocation,
        errs: &mut ErrorList,
    ) -> Result<(), Status> {
        let wanted = spec.type_.as_deref() == Some("NodePort")
            || spec.allocate_load_balancer_node_ports != Some(false);
        let (mut mine, mut pairs): (HashSet<u16>, HashSet<(String, u16)>) = Default::default();
        let asked = |port: &ServicePort| port.node_port.filter(|p| *p != 0);
        let mut shared: HashMap<i32, i32> = HashMap::new();
        for port in spec.ports.iter().flatten().filter(|_| fresh) {
            if let Some(number) = asked(port) {
                shared.entry(port.port).or_insert(number);
            }
        }
        for (i, port) in spec.ports.iter_mut().flatten().enumerate() {
            let asked = asked(port).or_else(|| shared.get(&port.port).copied().filter(|_| wanted));
            let requested = asked.unwrap_or(0);
            let number = match asked.map(u16::try_from) {
                Some(Ok(number)) if before.contains(&number) || mine.contains(&number) => number,
                Some(asked) => {
                    let taken = asked.map_or_else(|_| Some(self.out_of_range()), |n| self.take_port(n, held));
                    if let Some(why) = taken {
                        let at = Path::new("spec.ports").index(i).child("nodePort");
                        errs.invalid(at, requested, why);
                        return Ok(());
                    }
                    let number = asked.unwrap_or(0);
                    held.ports.push(number);
                    number
                }
                None if !wanted => continue,
                None => {
                    let number = self.pick_port(held)?;
                    held.ports.push(number);
                    number
                }
            };
            port.node_port = Some(i32::from(number));
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            if !fresh && !pairs.insert((protocol.clone(), number)) {
                let why = format!("duplicate nodePort: {{{protocol} {number}}}");
                return Err(Status::new(500, Reason::Unknown, why, None));
            }
            mine.insert(number);
            if fresh {
                shared.insert(port.port, i32::from(number));
            }
        }
        Ok(())
    }

    fn out_of_range(&self) -> String {
        let (low, high) = self.ports;
        format!("provided port is not in the valid range. The range of valid ports is {low}-{high}")
    }

    fn take_port(&self, number: u16, held: &Allocation) -> Option<String> {
        let (low, high) = self.ports;
        let mut taken = self.taken.lock();
        let fresh = if held.dry_run {
            !taken.numbers.contains(&number) && !held.ports.contains(&number)
        } else if (low..=high).contains(&number) {
            taken.number(number)
        } else {
            return Some(self.out_of_range());
        };
        (!fresh).then(|| "provided port is already allocated".to_owned())
    }

    fn pick_port(&self, held: &Allocation) -> Result<u16, Status> {
        if held.dry_run {
            // A port that looks like one, behind those that the service has got already.
            return Ok(held.ports.iter().max().unwrap_or(&32768).saturating_add(1));
        }
        let (low, high) = self.ports;
        let span = u32::from(high - low) + 1;
        let mut taken = self.taken.lock();
        let start = rand::rng().random_range(0..span);
        for i in 0..span {
            let number = low + u16::try_from((start + i) % span).unwrap_or(0);
            if taken.number(number) {
                return Ok(number);
            }
        }
        Err(Status::internal("failed to allocate a nodePort: range is full"))
    }
}

fn addresses(spec: &ServiceSpec) -> Vec<u32> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut out: Vec<u32> = all.filter_map(|ip| ip.parse::<Ipv4Addr>().ok()).map(u32::from).collect();
    out.dedup();
    out
}

fn node_ports(spec: &ServiceSpec) -> Vec<u16> {
    let ports = spec.ports.iter().flatten().filter_map(|p| p.node_port).chain(spec.health_check_node_port);
    ports.filter_map(|p| u16::try_from(p).ok()).filter(|p| *p != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ip: Option<&str>) -> Service {
        let spec = ServiceSpec {
            cluster_ip: ip.map(str::to_owned),
            type_: Some("ClusterIP".into()),
            ..ServiceSpec::default()
        };
        Service { spec: Some(spec), ..Service::default() }
    }

    #[test]
    fn address_is_taken_once_and_free_again_after_a_failed_write_or_release() {
        let services = Services::new("10.96.0.0/16", (30000, 32767)).unwrap();
        let mut a = service(Some("10.96.0.9"));
        let failed = services.allocate(&mut a, None, false).unwrap();
        assert!(services.allocate(&mut service(Some("10.96.0.9")), None, false).is_err());
        drop(failed);
        services.allocate(&mut a, None, false).unwrap().keep();
        assert!(services.allocate(&mut service(Some("10.96.0.9")), None, false).is_err());
        services.release(&a);
        assert!(services.allocate(&mut service(Some("10.96.0.9")), None, false).is_ok());
    }

    #[test]
    fn what_other_servers_gave_out_is_taken_and_writes_under_way_stay_reserved() {
        let services = Services::new("10.96.0.0/16", (30000, 32767)).unwrap();
        let flying = services.allocate(&mut service(Some("10.96.0.9")), None, false).unwrap();
        services.allocate(&mut service(Some("10.96.0.10")), None, false).unwrap().keep();
        let elsewhere = service(Some("10.96.0.11"));
        services.resync(elsewhere.spec.iter());
        let free = |ip| services.allocate(&mut service(Some(ip)), None, false).is_ok();
        assert!(!free("10.96.0.9"), "a write is under way");
        assert!(free("10.96.0.10"), "another server has deleted its Service");
        assert!(!free("10.96.0.11"), "another server has given it out");
        drop(flying);
        assert!(free("10.96.0.9"));
    }

    fn balanced(ports: &[(i32, Option<i32>)]) -> Service {
        let port = |(port, node_port): &(i32, Option<i32>)| ServicePort {
            port: *port,
            node_port: *node_port,
            ..ServicePort::default()
        };
        let spec = ServiceSpec {
            type_: Some("LoadBalancer".into()),
            external_traffic_policy: Some("Local".into()),
            ports: Some(ports.iter().map(port).collect()),
            ..ServiceSpec::default()
        };
        Service { spec: Some(spec), ..Service::default() }
    }

    #[test]
    fn a_dry_run_shows_what_looks_allocated_and_reserves_nothing() {
        let services = Services::new("10.96.0.0/16", (30000, 32767)).unwrap();
        let mut first = balanced(&[(80, None), (81, Some(1000)), (82, None)]);
        services.allocate(&mut first, None, true).unwrap();
        let spec = first.spec.unwrap();
        assert_eq!(spec.cluster_ip.as_deref(), Some("10.96.0.0"));
        let numbers: Vec<_> = spec.ports.iter().flatten().map(|p| p.node_port).collect();
        assert_eq!(numbers, [Some(32769), Some(1000), Some(32770)]);
        assert_eq!(spec.health_check_node_port, Some(32771));
        let taken = services.taken.lock();
        assert!(taken.addresses.is_empty() && taken.numbers.is_empty());
    }

    #[test]
    fn a_change_may_not_use_a_node_port_twice() {
        let services = Services::new("10.96.0.0/16", (30000, 32767)).unwrap();
        let mut old = balanced(&[(80, Some(30001))]);
        services.allocate(&mut old, None, false).unwrap().keep();
        let mut new = balanced(&[(80, Some(30001)), (81, Some(30001))]);
        let refused = services.allocate(&mut new, Some(&old), false).unwrap_err();
        assert_eq!((refused.code(), refused.message()), (500, "duplicate nodePort: {TCP 30001}"));
    }

    #[test]
    fn headless_service_takes_no_address() {
        let services = Services::new("10.96.0.0/16", (30000, 32767)).unwrap();
        let mut headless = service(Some("None"));
        services.allocate(&mut headless, None, false).unwrap().keep();
        assert_eq!(headless.spec.unwrap().cluster_ips, Some(vec!["None".to_owned()]));
        assert!(services.taken.lock().addresses.is_empty());
    }
}
