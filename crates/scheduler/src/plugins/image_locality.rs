//! ImageLocality: nodes that have the pod's images already rank higher, by size.

use crate::cache::NodeInfo;
use crate::framework::{CycleState, MAX_NODE_SCORE, PluginDef, Score};

pub(super) const DEF: PluginDef =
    PluginDef { score: Some(&ImageLocality), ..PluginDef::named("ImageLocality") };

const MEGABYTE: i64 = 1024 * 1024;
/// Below this sum images do not matter.
const LOW: i64 = 23 * MEGABYTE;
/// From this sum per container on the score is highest.
const HIGH: i64 = 1000 * MEGABYTE;

struct ImageLocality;

/// The name under which nodes report an image: with a tag.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

impl Score for ImageLocality {
    /// Unlike upstream's, the score does not shrink with the share of nodes that lack the image: it stays a
    /// function of pod and node alone, so that pods of one shape can share it.
    fn score(&self, pod: &CycleState, node: &NodeInfo) -> i64 {
        if node.images.is_empty() {
            return 0;
        }
        let object = pod.pod();
        let containers = object.spec.iter().flat_map(|s| &s.containers);
        let (mut sum, mut count) = (0, 0);
        for container in containers {
            count += 1;
            let image = container.image.as_deref().map(normalized).unwrap_or_default();
            sum += node.images.get(&image).copied().unwrap_or(0);
        }
        let high = HIGH * count;
        if high <= LOW { 0 } else { MAX_NODE_SCORE * (sum.clamp(LOW, high) - LOW) / (high - LOW) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{node, pod};

    #[test]
    fn big_images_on_the_node_raise_the_score() {
        let with = |size: i64| {
            node("a", json!({"status": {"images": [{"names": ["i:latest"], "sizeBytes": size}]}}))
        };
        let pod = pod(json!({}));
        assert_eq!(ImageLocality.score(&pod, &with(LOW)), 0);
        assert_eq!(ImageLocality.score(&pod, &with(2 * HIGH)), 100);
        assert_eq!(ImageLocality.score(&pod, &node("a", json!({}))), 0);
    }
}
