//! Hostile input: bodies in JSON, YAML and protobuf, patches, selectors, CEL, schemas of custom resources, tokens.
//! Each target changes seeds and makes input up after the server's own OpenAPI documents, and sends it over HTTP (CEL:
//! to the library) for `CORACLE_FUZZ_SECONDS` (default 20; ADR 16). A panic, an end of the process, an answer that
//! takes longer than two minutes or a process of more than 1 GB fails. `CORACLE_FUZZ_SEED` repeats a run; the input
//! that was sent last is in `target/tmp/fuzz-<target>`.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod cel;
mod drive;
mod generate;
mod mutate;
mod patches;
mod schemas;
mod selectors;
mod tokens;

use drive::fuzz;

#[test]
fn json_bodies_do_no_harm() {
    fuzz("json", |server| Box::pin(bodies::Bodies::new(server, bodies::Encoding::Json)));
}

#[test]
fn yaml_bodies_do_no_harm() {
    fuzz("yaml", |server| Box::pin(bodies::Bodies::new(server, bodies::Encoding::Yaml)));
}

#[test]
fn protobuf_bodies_do_no_harm() {
    fuzz("protobuf", |server| Box::pin(bodies::Bodies::new(server, bodies::Encoding::Protobuf)));
}

#[test]
fn patches_do_no_harm() {
    fuzz("patches", |server| Box::pin(patches::Patches::new(server)));
}

#[test]
fn selectors_do_no_harm() {
    fuzz("selectors", |server| Box::pin(selectors::Selectors::new(server)));
}

#[test]
fn schemas_of_custom_resources_do_no_harm() {
    fuzz("schemas", |server| Box::pin(schemas::Schemas::new(server)));
}

#[test]
fn tokens_do_no_harm() {
    fuzz("tokens", |server| Box::pin(tokens::Tokens::new(server)));
}

#[test]
fn expressions_do_no_harm() {
    cel::fuzz();
}
