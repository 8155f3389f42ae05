//! Whom a load balancer's address lets in: `loadBalancerSourceRanges`, kept by the kernel.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::ServiceSpec;

use crate::config::Cidr;

/// The ranges that clients must come from; packets of others are dropped. Without a range that is IPv4, nobody's pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guard {
    /// In order, each once.
    ranges: Vec<Cidr>,
}

impl Guard {
    /// The Service's, if it asks for one.
    pub fn of(spec: &ServiceSpec) -> Option<Self> {
        let declared = spec.load_balancer_source_ranges.as_ref().filter(|ranges| !ranges.is_empty())?;
        let mut ranges: Vec<Cidr> =
            declared.iter().filter_map(|text| Cidr::parse(text.trim()).ok()).collect();
        ranges.sort_unstable();
        ranges.dedup();
        Some(Self { ranges })
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Cidr] {
        &self.ranges
    }

    /// The name of the chain that lets them pass; the same for all Services with the same ranges.
    pub fn chain(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.ranges.hash(&mut hasher);
        format!("from-{:016x}", hasher.finish())
    }
}
