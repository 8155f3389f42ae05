//! Capacities of devices that several claims share: how much a request takes, and whether it is left. Pure.

use std::collections::BTreeMap;

use coracle_meta::quantity::Quantity;
use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicyRange, CapacityRequirements, Device, DeviceCapacity,
};

use super::Consumed;

fn quantity(api: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Quantity {
    Quantity::from_api(api)
}

/// The next amount of a range that is not below the wanted one.
fn rounded(wanted: Quantity, range: &CapacityRequestPolicyRange) -> Quantity {
    let min = quantity(&range.min);
    if wanted < min {
        return min;
    }
    let Some(step) = range.step.as_ref().map(|step| quantity(step).value()).filter(|step| *step > 0) else {
        return wanted;
    };
    let above = wanted.value().saturating_sub(min.value());
    let steps = above / step + i64::from(above % step != 0);
    Quantity::from_bytes(min.value().saturating_add(step.saturating_mul(steps)))
}

/// What a request of `wanted` takes of a capacity.
fn taken(wanted: Option<Quantity>, capacity: &DeviceCapacity) -> Quantity {
    let policy = capacity.request_policy.as_ref();
    let Some(wanted) = wanted else {
        let default = policy.and_then(|policy| policy.default.as_ref());
        return quantity(default.unwrap_or(&capacity.value));
    };
    if let Some(range) = policy.and_then(|policy| policy.valid_range.as_ref()) {
        return rounded(wanted, range);
    }
    let values = policy.and_then(|policy| policy.valid_values.as_deref()).unwrap_or(&[]);
    values.iter().map(quantity).find(|value| wanted <= *value).unwrap_or(wanted)
}

/// Whether the capacity's policy allows an amount.
fn is_allowed(amount: Quantity, capacity: &DeviceCapacity) -> bool {
    let Some(policy) = &capacity.request_policy else { return true };
    if policy.default.as_ref().is_some_and(|default| quantity(default) == amount) {
        return true;
    }
    if let Some(range) = &policy.valid_range {
        let above = amount.value().saturating_sub(quantity(&range.min).value());
        let step = range.step.as_ref().map(|step| quantity(step).value()).filter(|step| *step > 0);
        return range.max.as_ref().is_none_or(|max| amount <= quantity(max))
            && step.is_none_or(|step| above % step == 0);
    }
    match policy.valid_values.as_deref() {
        None | Some([]) => true,
        Some(values) => values.iter().any(|value| quantity(value) == amount),
    }
}

fn wanted<'a>(request: Option<&'a CapacityRequirements>) -> impl Fn(&str) -> Option<Quantity> + 'a {
    let asked = request.and_then(|request| request.requests.as_ref());
    move |name| asked.and_then(|asked| asked.get(name)).map(quantity)
}

/// What a request takes of each of a device's capacities.
pub(super) fn consumed(request: Option<&CapacityRequirements>, device: &Device) -> Consumed {
    let wanted = wanted(request);
    let capacities = device.capacity.iter().flatten();
    capacities.map(|(name, capacity)| (name.clone(), taken(wanted(name), capacity))).collect()
}

/// Whether a device has left what a request takes of it, beside what is taken `already`.
pub(super) fn fits(
    request: Option<&CapacityRequirements>,
    device: &Device,
    already: [Option<&Consumed>; 2],
) -> bool {
    let none = BTreeMap::new();
    let capacities = device.capacity.as_ref().unwrap_or(&none);
    let asked = request.and_then(|request| request.requests.as_ref());
    if asked.is_some_and(|asked| asked.keys().any(|name| !capacities.contains_key(name))) {
        return false;
    }
    consumed(request, device).into_iter().all(|(name, amount)| {
        let Some(capacity) = capacities.get(&name) else { return false };
        let before = already.iter().flatten().filter_map(|taken| taken.get(&name).copied());
        is_allowed(amount, capacity) && amount + before.sum::<Quantity>() <= quantity(&capacity.value)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn device(memory: &Value) -> Device {
        serde_json::from_value(json!({ "name": "d", "capacity": { "memory": memory } })).expect("a device")
    }

    fn asked(memory: &str) -> CapacityRequirements {
        serde_json::from_value(json!({ "requests": { "memory": memory } })).expect("a request")
    }

    #[test]
    fn requests_are_rounded_up_to_what_the_policy_allows() {
        let range = json!({ "value": "40Gi", "requestPolicy": { "default": "1Gi",
            "validRange": { "min": "1Gi", "max": "16Gi", "step": "2Gi" } } });
        let takes = |memory: &Value, request: Option<&str>| {
            let request = request.map(asked);
            let device = device(memory);
            let amount = consumed(request.as_ref(), &device)["memory"].to_string();
            (amount, fits(request.as_ref(), &device, [None, None]))
        };
        assert_eq!(takes(&range, None), ("1Gi".to_owned(), true));
        assert_eq!(takes(&range, Some("512Mi")), ("1Gi".to_owned(), true));
        assert_eq!(takes(&range, Some("4Gi")), ("5Gi".to_owned(), true));
        assert!(!takes(&range, Some("17Gi")).1, "above the maximum");
        let values = json!({ "value": "40Gi", "requestPolicy": { "default": "10Gi", "validValues": ["10Gi", "20Gi"] } });
        assert_eq!(takes(&values, Some("11Gi")), ("20Gi".to_owned(), true));
        assert!(!takes(&values, Some("30Gi")).1);
        assert_eq!(takes(&json!({ "value": "40Gi" }), None), ("40Gi".to_owned(), true));
    }

    #[test]
    fn what_others_took_is_not_left() {
        let device = device(&json!({ "value": "10Gi" }));
        let before: Consumed = [("memory".to_owned(), Quantity::parse("7Gi").expect("an amount"))].into();
        assert!(fits(Some(&asked("3Gi")), &device, [Some(&before), None]));
        assert!(!fits(Some(&asked("4Gi")), &device, [None, Some(&before)]));
        let strange = serde_json::from_value(json!({ "requests": { "cores": "1" } })).expect("a request");
        assert!(!fits(Some(&strange), &device, [None, None]));
    }
}
