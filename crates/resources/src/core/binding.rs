//! Binding: the old way to assign a pod to a node. Never stored; the server binds the pod of that name.

use k8s_openapi::api::core::v1::Binding;

use crate::def::{ResourceDef, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    storage: Storage::Virtual,
    ..ResourceDef::new::<Binding>("binding", &Typed::<Binding, _>::new(Bindings))
};

struct Bindings;

impl Strategy<Binding> for Bindings {}
