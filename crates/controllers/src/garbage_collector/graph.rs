//! The graph of owners and dependents over all resources: pure. It takes what the watches report and tells
//! which objects to look at.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use coracle_meta::Object;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

pub(super) type Uid = Arc<str>;

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Task {
    /// Whether the object must go, or may go if it waits for its dependents.
    Delete(Uid),
    /// The object's dependents must be let go.
    Orphan(Uid),
}

/// An edge to an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    uid: Uid,
    /// Whether the owner, in foreground deletion, waits for this object.
    blocking: bool,
}

/// Whether and how an object is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Lives,
    /// For other reasons than its dependents.
    Leaves,
    /// Once its blocking dependents are gone.
    WaitsForDependents,
    /// Once its dependents are let go.
    Orphans,
}

impl Phase {
    /// The phase that an object's metadata tells.
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        match meta.deletion_timestamp {
            None => Self::Lives,
            Some(_) if has(ORPHAN) => Self::Orphans,
            Some(_) if has(FOREGROUND) => Self::WaitsForDependents,
            Some(_) => Self::Leaves,
        }
    }
}

/// An object that exists.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Position of its resource in the configuration.
    pub resource: usize,
    pub namespace: Arc<str>,
    pub name: Box<str>,
    pub phase: Phase,
    pub owners: Box<[Owner]>,
}

/// All objects, and who depends on whom.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<Uid, Node>,
    /// Dependents by owner, also for owners that are not (yet) known.
    dependents: HashMap<Uid, HashSet<Uid>>,
    namespaces: HashSet<Arc<str>>,
    /// By resource: the objects applied since its list began, while one runs.
    listed: HashMap<usize, HashSet<Uid>>,
    /// Whether all first lists are complete: before that, an unknown owner means nothing.
    complete: bool,
}

impl Graph {
    pub(super) fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name this one as owner.
    pub(super) fn dependents(&self, uid: &str) -> Vec<(Uid, Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.clone()))).collect()
    }

    /// The dependents for which the object, in foreground deletion, waits.
    pub(super) fn blocking(&self, uid: &str) -> Vec<(Uid, Phase)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        let blocks = |node: &Node| node.owners.iter().any(|o| &*o.uid == uid && o.blocking);
        uids.filter_map(|dependent| {
            let node = self.nodes.get(dependent).filter(|node| blocks(node))?;
            Some((dependent.clone(), node.phase))
        })
        .collect()
    }

    /// All first lists are complete: what must be looked at.
    pub(super) fn complete(&mut self) -> Vec<Task> {
        self.complete = true;
        let mut tasks = self.unknown_owners();
        for (uid, node) in &self.nodes {
            match node.phase {
                Phase::WaitsForDependents => {
                    tasks.push(Task::Delete(uid.clone()));
                    self.wake_dependents(uid, &mut tasks);
                }
                Phase::Orphans => tasks.push(Task::Orphan(uid.clone())),
                Phase::Lives | Phase::Leaves => {}
            }
        }
        tasks
    }

    /// Dependents of owners that no watch knows.
    fn unknown_owners(&self) -> Vec<Task> {
        let unknown = self.dependents.iter().filter(|(owner, _)| !self.nodes.contains_key(*owner));
        unknown.flat_map(|(_, dependents)| dependents.iter().cloned().map(Task::Delete)).collect()
    }

    fn wake_dependents(&self, uid: &str, tasks: &mut Vec<Task>) {
        tasks.extend(self.dependents.get(uid).into_iter().flatten().cloned().map(Task::Delete));
    }

    /// A list of the resource begins.
    pub(super) fn begin_list(&mut self, resource: usize) {
        self.listed.insert(resource, HashSet::new());
    }

    /// The list is complete: what was not in it is gone.
    pub(super) fn end_list(&mut self, resource: usize) -> Vec<Task> {
        let listed = self.listed.remove(&resource).unwrap_or_default();
        let of_resource = self.nodes.iter().filter(|(_, node)| node.resource == resource);
        let gone: Vec<Uid> =
            of_resource.map(|(uid, _)| uid.clone()).filter(|uid| !listed.contains(uid)).collect();
        let mut tasks: Vec<Task> = gone.iter().flat_map(|uid| self.remove(uid)).collect();
        if self.complete {
            tasks.extend(self.unknown_owners());
        }
        tasks
    }

    /// The object exists in this state.
    pub(super) fn apply(&mut self, resource: usize, object: &dyn Object) -> Vec<Task> {
        let meta = object.meta();
        let Some(uid) = meta.uid.as_deref() else { return Vec::new() };
        let uid = self.shared(uid);
        if let Some(listed) = self.listed.get_mut(&resource) {
            listed.insert(uid.clone());
        }
        let phase = Phase::of(meta);
        let owners: Box<[Owner]> = meta
            .owner_references
            .iter()
            .flatten()
            .map(|o| Owner { uid: self.shared(&o.uid), blocking: o.block_owner_deletion == Some(true) })
            .collect();
        let mut tasks = Vec::new();
        let old = self.nodes.remove(&uid);
        let old_phase = old.as_ref().map_or(Phase::Lives, |node| node.phase);
        let old_owners = old.as_ref().map(|node| node.owners.clone()).unwrap_or_default();
        let node = match old {
            Some(node) => Node { phase, owners: owners.clone(), ..node },
            None => Node {
                resource,
                namespace: self.namespace(object.namespace()),
                name: object.name().into(),
                phase,
                owners: owners.clone(),
            },
        };
        self.nodes.insert(uid.clone(), node);
        if owners != old_owners {
            self.unlink(&uid, &old_owners, &mut tasks);
            self.link(&uid, &owners, &mut tasks);
        }
        if phase != old_phase {
            match phase {
                Phase::WaitsForDependents => {
                    tasks.push(Task::Delete(uid.clone()));
                    self.wake_dependents(&uid, &mut tasks);
                }
                Phase::Orphans => tasks.push(Task::Orphan(uid.clone())),
                Phase::Lives | Phase::Leaves => {}
            }
        }
        if self.complete { tasks } else { Vec::new() }
    }

    /// The object is gone.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Task> {
        let mut tasks = Vec::new();
        if let Some((uid, node)) = self.nodes.remove_entry(uid) {
            self.unlink(&uid, &node.owners, &mut tasks);
            self.wake_dependents(&uid, &mut tasks);
        }
        if self.complete { tasks } else { Vec::new() }
    }

    fn link(&mut self, uid: &Uid, owners: &[Owner], tasks: &mut Vec<Task>) {
        for owner in owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            // Unknown, or on its way out: the dependent may have to go too.
            let lives = self.nodes.get(&owner.uid).is_some_and(|node| node.phase == Phase::Lives);
            if !lives {
                tasks.push(Task::Delete(uid.clone()));
            }
        }
    }

    fn unlink(&mut self, uid: &Uid, owners: &[Owner], tasks: &mut Vec<Task>) {
        for owner in owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            let waits = |node: &Node| node.phase == Phase::WaitsForDependents;
            if self.nodes.get(&owner.uid).is_some_and(waits) {
                tasks.push(Task::Delete(owner.uid.clone()));
            }
        }
    }

    /// One allocation per uid, however many edges lead to it.
    fn shared(&self, uid: &str) -> Uid {
        let known = self.nodes.get_key_value(uid).map(|(uid, _)| uid);
        known
            .or_else(|| self.dependents.get_key_value(uid).map(|(uid, _)| uid))
            .cloned()
            .unwrap_or(uid.into())
    }

    fn namespace(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.namespaces.get(name) {
            return known.clone();
        }
        let new: Arc<str> = name.into();
        self.namespaces.insert(new.clone());
        new
    }
}
