//! Constraints among the devices of a claim: an attribute that all share, or that no two share. Pure.

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute, DeviceConstraint};

/// A constraint and the devices that it counts so far.
#[derive(Debug)]
pub(super) struct Constraint<'a> {
    attribute: &'a str,
    /// Whether the values must differ.
    distinct: bool,
    /// Requests that it is about; all when empty.
    requests: &'a [String],
    values: Vec<&'a DeviceAttribute>,
}

/// An attribute by its qualified name; the driver's own may stand without its domain.
fn attribute<'a>(device: &'a Device, driver: &str, name: &str) -> Option<&'a DeviceAttribute> {
    let all = device.attributes.as_ref()?;
    all.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        all.get(id).filter(|_| domain == driver)
    })
}

impl<'a> Constraint<'a> {
    /// `None` for a kind that is not known.
    pub fn new(constraint: &'a DeviceConstraint) -> Option<Self> {
        let (attribute, distinct) = match (&constraint.match_attribute, &constraint.distinct_attribute) {
            (Some(name), _) => (name, false),
            (None, Some(name)) => (name, true),
            (None, None) => return None,
        };
        let requests = constraint.requests.as_deref().unwrap_or(&[]);
        Some(Self { attribute, distinct, requests, values: Vec::new() })
    }

    fn is_about(&self, request: &str, sub_request: Option<&str>) -> bool {
        let named = |known: &String| match (known.strip_prefix(request), sub_request) {
            (Some(""), _) => true,
            (Some(rest), Some(sub)) => rest.strip_prefix('/') == Some(sub),
            _ => false,
        };
        self.requests.is_empty() || self.requests.iter().any(named)
    }

    /// Counts a device of a request in, if the constraint allows it.
    pub fn add(&mut self, request: (&str, Option<&str>), driver: &str, device: &'a Device) -> bool {
        if !self.is_about(request.0, request.1) {
            return true;
        }
        let Some(value) = attribute(device, driver, self.attribute) else { return false };
        let fits = if self.distinct {
            self.values.iter().all(|other| *other != value)
        } else {
            self.values.first().is_none_or(|other| *other == value)
        };
        if fits {
            self.values.push(value);
        }
        fits
    }

    /// Takes the device of a request out again that was counted in last.
    pub fn remove(&mut self, request: (&str, Option<&str>)) {
        if self.is_about(request.0, request.1) {
            self.values.pop();
        }
    }
}
