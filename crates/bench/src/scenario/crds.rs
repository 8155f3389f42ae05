//! Definitions of custom resources made one after another, as an operator's chart does: how fast they come, when
//! clients find each, and what it costs in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cost::Meter;
use crate::http::{Call, Connection};
use crate::objects::run_id;
use crate::process::total;
use crate::stats::{Samples, Summary};
use crate::target::{Failure, Target};

/// Options.
#[derive(clap::Args, Clone, Debug)]
pub struct CrdsArgs {
    /// Definitions.
    #[arg(long, default_value_t = 200)]
    pub objects: u64,
    /// Fields in the schema of each; the charts that people install have 50 to 5,000.
    #[arg(long, default_value_t = 200)]
    pub fields: u64,
}

const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// A definition that is not served by then is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// A definition with so many fields, in groups of twenty.
fn definition(group: &str, number: u64, fields: u64) -> Value {
    let text =
        "What this field is for, in as many words as such descriptions have on the average of all charts.";
    let field = json!({ "type": "string", "description": text, "maxLength": 253 });
    let some = |n: u64| -> Value {
        let all = (0..n).map(|i| (format!("field{i}"), field.clone()));
        json!({ "type": "object", "description": text, "properties": all.collect::<serde_json::Map<_, _>>() })
    };
    let spec: serde_json::Map<_, _> =
        (0..fields.div_ceil(20)).map(|i| (format!("part{i}"), some(20.min(fields - i * 20)))).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("things{number}.{group}") },
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": { "plural": format!("things{number}"), "kind": format!("Thing{number}") },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                    "spec": { "type": "object", "properties": spec },
                    "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                } } },
            }],
        },
    })
}

/// Makes the definitions. The latency is that from the answer to the creation until discovery and the OpenAPI document
/// of the group tell of it; `create_ms` is that of the creation itself.
///
/// # Errors
/// The server refuses, or does not serve a definition.
pub async fn crds(target: &Arc<Target>, args: &CrdsArgs) -> Result<Summary, Failure> {
    let run = run_id();
    let mut connection = Connection::open(target).await?;
    let (mut published, mut created) = (Samples::default(), Samples::default());
    let before = total(&target.pids);
    let (begun, meter) = (Instant::now(), Meter::start(&target.pids));
    for number in 0..args.objects {
        // Twenty groups, as many definitions in each.
        let group = format!("g{}.{run}.example.com", number % 20);
        let start = Instant::now();
        connection.ensure(Call::post(PATH, definition(&group, number, args.fields).to_string())).await?;
        let made = Instant::now();
        created.ok(made - start, 0);
        wait(&mut connection, &group, number).await?;
        published.ok(made.elapsed(), 0);
    }
    let mut summary = published.summary("crds", begun.elapsed(), meter.stop());
    let create = created.summary("create", begun.elapsed(), crate::cost::Cost::default());
    summary.extra.insert("create_p50_ms".into(), create.latency_ms.p50);
    summary.extra.insert("create_p99_ms".into(), create.latency_ms.p99);
    let more = total(&target.pids).rss_mb - before.rss_mb;
    summary.extra.insert("memory_kb_each".into(), (more * 1000.0 / args.objects.max(1) as f64).round());
    for number in 0..args.objects {
        let call = Call::delete(format!("{PATH}/things{number}.g{}.{run}.example.com", number % 20));
        connection.send(&call, false).await?;
    }
    Ok(summary)
}

async fn wait(connection: &mut Connection, group: &str, number: u64) -> Result<(), Failure> {
    let (plural, kind) = (format!("\"things{number}\""), format!(".v1.Thing{number}\""));
    let until = Instant::now() + PATIENCE;
    for (path, word) in
        [(format!("/apis/{group}/v1"), plural), (format!("/openapi/v3/apis/{group}/v1"), kind)]
    {
        loop {
            let reply = connection.send(&Call::get(path.as_str()), true).await?;
            if reply.status == 200 && crate::wire::find(&reply.body, word.as_bytes()).is_some() {
                break;
            }
            if Instant::now() > until {
                return Err(format!("{path} does not tell of {word} after {} s", PATIENCE.as_secs()));
            }
        }
    }
    Ok(())
}
