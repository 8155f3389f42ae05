//! What is said of a node's images: pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

/// The images of a node: bytes by their shortest name.
pub type Images = BTreeMap<String, i64>;

/// Reads the images off a node's status. An image has several names; the shortest is the one that people use.
pub fn images_of(node: &Node) -> Images {
    let all = node.status.iter().flat_map(|status| status.images.iter().flatten());
    let one = |image: &k8s_openapi::api::core::v1::ContainerImage| {
        let names = image.names.as_ref()?;
        let shortest = names.iter().min_by_key(|name| (name.len(), name.as_str()))?;
        Some((shortest.clone(), image.size_bytes.unwrap_or(0)))
    };
    all.filter_map(one).collect()
}

/// Bytes as people read them.
pub fn size(bytes: i64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        // One digit, cut off: integers are exact where floats are not.
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

/// The sum of a node in one line.
pub fn summary(node: &str, images: &Images) -> String {
    let total = images.values().fold(0_i64, |sum, bytes| sum.saturating_add(*bytes));
    format!("{node}: {} images, {}", images.len(), size(total))
}

/// What changed on a node, a line each: images that came, went, or are of another size.
pub fn changes(node: &str, before: &Images, now: &Images) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, bytes) in now {
        match before.get(name) {
            None => lines.push(format!("{node}: + {name} ({})", size(*bytes))),
            Some(old) if old != bytes => {
                lines.push(format!("{node}: ~ {name} ({}, was {})", size(*bytes), size(*old)));
            }
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|(name, _)| !now.contains_key(*name));
    lines.extend(gone.map(|(name, bytes)| format!("{node}: - {name} ({})", size(*bytes))));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn images(list: &[(&str, i64)]) -> Images {
        list.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
    }

    #[test]
    fn an_image_goes_by_its_shortest_name() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n" },
            "status": { "images": [
                { "names": ["registry.example/app@sha256:0123", "registry.example/app:1"], "sizeBytes": 2048 },
                { "names": [], "sizeBytes": 1 },
            ] },
        }))
        .expect("a node");
        assert_eq!(images_of(&node), images(&[("registry.example/app:1", 2048)]));
        assert!(images_of(&Node::default()).is_empty());
    }

    #[test]
    fn what_came_went_or_grew_is_told_once() {
        let (before, now) =
            (images(&[("a", 1 << 20), ("b", 5), ("c", 7)]), images(&[("a", 1 << 20), ("b", 6), ("d", 1536)]));
        let told = changes("n", &before, &now);
        assert_eq!(told, ["n: ~ b (6 B, was 5 B)", "n: + d (1.5 KiB)", "n: - c (7 B)"]);
        assert!(changes("n", &now, &now).is_empty());
        assert_eq!(summary("n", &before), "n: 3 images, 1.0 MiB");
    }
}
