//! Acting as somebody else: what a request has to be allowed before it counts as another user's.
//!
//! Constrained impersonation (<https://kep.k8s.io/5284>) comes first: rights to act as a kind of user, and rights to
//! do one thing while doing so. The right to impersonate as such, which says nothing about what is done, comes last.

use std::collections::BTreeMap;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;

use crate::{Attributes, SYSTEM_MASTERS, UserInfo};

const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const GROUP: &str = "authentication.k8s.io";
/// Extra attribute of service account tokens: the node of the pod that the token is bound to.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";
/// From so many groups or extra values on, the right to all of them is asked for first.
const MANY: usize = 4;

/// A way to be allowed to act as another user.
#[derive(Clone, Debug)]
pub struct Mode {
    /// The verb that stands for it in the audit log; empty for impersonation without constraints.
    pub constraint: &'static str,
    /// As metrics call it.
    pub name: &'static str,
    /// What must be allowed, in order.
    pub steps: Vec<Step>,
    /// Who the request is then made by.
    pub user: UserInfo,
}

/// One condition of a [`Mode`].
#[derive(Clone, Debug)]
pub enum Step {
    /// This must be allowed.
    Allowed(Attributes),
    /// Either the first, or each of the others.
    AllOrEach(Attributes, Vec<Attributes>),
    /// Never met, for this reason.
    Never(Attributes, String),
}

/// The ways in which `request` may be made as `wanted`, in the order to try them. `wanted` is what the headers say,
/// `request` what is to be done, its user the one who asks.
pub fn modes(wanted: &UserInfo, request: &Attributes) -> Vec<Mode> {
    let node = node_name(&wanted.name);
    let account = service_account(&wanted.name);
    let name_only = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
    let mut out = Vec::new();
    if let Some(node) = node.filter(|_| name_only) {
        if is_on_node(&request.user, node) {
            out.push(associated_node(wanted, request));
        }
        out.push(constrained("impersonate:arbitrary-node", wanted, request));
    }
    if account.is_some() && name_only {
        out.push(constrained("impersonate:serviceaccount", wanted, request));
    }
    if node.is_none() && account.is_none() {
        out.push(constrained("impersonate:user-info", wanted, request));
    }
    let check = Check { asker: &request.user, verb: "impersonate", constrained: false };
    out.push(Mode { constraint: "", name: "legacy", steps: check.steps(wanted), user: check.user(wanted) });
    out
}

/// The node of a service account's pod may be acted as by that service account. The right holds for every node, as
/// the name of the node is known to be the right one.
fn associated_node(wanted: &UserInfo, request: &Attributes) -> Mode {
    let keys = request.user.extra.keys().cloned().collect();
    let asker = UserInfo { extra: BTreeMap::from([(NODE_KEYS.to_owned(), keys)]), ..request.user.clone() };
    let mut mode =
        constrained("impersonate:associated-node", wanted, &Attributes { user: asker, ..request.clone() });
    for step in &mut mode.steps {
        if let Step::Allowed(what) = step
            && what.verb == mode.constraint
        {
            what.name = "*".to_owned();
        }
    }
    mode
}

fn constrained(verb: &'static str, wanted: &UserInfo, request: &Attributes) -> Mode {
    let name = verb.strip_prefix("impersonate:").unwrap_or(verb);
    let on = Attributes { verb: format!("impersonate-on:{name}:{}", request.verb), ..request.clone() };
    let check = Check { asker: &request.user, verb, constrained: true };
    let steps = std::iter::once(Step::Allowed(on)).chain(check.steps(wanted)).collect();
    Mode { constraint: verb, name, steps, user: check.user(wanted) }
}

/// The checks of who is acted as.
struct Check<'a> {
    asker: &'a UserInfo,
    verb: &'static str,
    constrained: bool,
}

impl Check<'_> {
    fn of(&self, group: &str, resource: &str, name: &str) -> Attributes {
        Attributes {
            user: self.asker.clone(),
            verb: self.verb.to_owned(),
            is_resource: true,
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        }
    }

    fn steps(&self, wanted: &UserInfo) -> Vec<Step> {
        let group = if self.constrained { GROUP } else { "" };
        let mut who = self.of(group, "users", &wanted.name);
        if let Some(node) = node_name(&wanted.name).filter(|_| self.constrained) {
            (who.resource, who.name) = ("nodes".to_owned(), node.to_owned());
        }
        if let Some((namespace, name)) = service_account(&wanted.name) {
            (who.resource, who.namespace, who.name) =
                ("serviceaccounts".to_owned(), namespace.to_owned(), name.to_owned());
        }
        let mut out = vec![Step::Allowed(who)];
        if !wanted.uid.is_empty() {
            out.push(Step::Allowed(self.of(GROUP, "uids", &wanted.uid)));
        }
        self.groups(group, &wanted.groups, &mut out);
        self.extra(&wanted.extra, &mut out);
        out
    }

    fn groups(&self, api_group: &str, groups: &[String], out: &mut Vec<Step>) {
        if self.constrained {
            let never = |name: &str, which: &str| {
                let why = format!("impersonating the {which} group is not allowed");
                Step::Never(self.of(api_group, "groups", name), why)
            };
            if groups.iter().any(String::is_empty) {
                return out.push(never("", "empty string"));
            }
            if groups.iter().any(|group| group == SYSTEM_MASTERS) {
                return out.push(never(SYSTEM_MASTERS, SYSTEM_MASTERS));
            }
        }
        let each = groups.iter().map(|group| self.of(api_group, "groups", group)).collect();
        self.each(groups.len(), self.of(api_group, "groups", "*"), each, out);
    }

    fn extra(&self, extra: &BTreeMap<String, Vec<String>>, out: &mut Vec<Step>) {
        if let Some(why) = misfit(extra).filter(|_| self.constrained) {
            return out.push(Step::Never(self.of(GROUP, "userextras", ""), why));
        }
        let of = |key: &str, value: &str| Attributes {
            subresource: key.to_owned(),
            ..self.of(GROUP, "userextras", value)
        };
        let each: Vec<Attributes> =
            extra.iter().flat_map(|(key, values)| values.iter().map(move |value| of(key, value))).collect();
        self.each(each.len().max(extra.len()), of("*", "*"), each, out);
    }

    fn each(&self, count: usize, all: Attributes, each: Vec<Attributes>, out: &mut Vec<Step>) {
        if self.constrained && count >= MANY {
            out.push(Step::AllOrEach(all, each));
        } else {
            out.extend(each.into_iter().map(Step::Allowed));
        }
    }

    /// The user with the groups that go without saying.
    fn user(&self, wanted: &UserInfo) -> UserInfo {
        let mut user = wanted.clone();
        if self.constrained && node_name(&user.name).is_some() {
            user.groups = vec!["system:nodes".to_owned()];
        }
        if let Some((namespace, _)) = service_account(&wanted.name).filter(|_| wanted.groups.is_empty()) {
            let own = format!("system:serviceaccounts:{namespace}");
            user.groups = vec!["system:serviceaccounts".to_owned(), own];
        }
        let implied = if user.name == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
        if !user.in_group(implied) && !user.in_group(UNAUTHENTICATED) {
            user.groups.push(implied.to_owned());
        }
        user
    }
}

/// Why extra attributes may not be given at all.
fn misfit(extra: &BTreeMap<String, Vec<String>>) -> Option<String> {
    for (key, values) in extra {
        if key.is_empty() {
            return Some("impersonating the empty string key in extra is not allowed".to_owned());
        }
        let mut errs = ErrorList::new();
        names::check_prefixed_path(key, &Path::new("extra").child("key"), &mut errs);
        if !errs.is_empty() {
            let why = errs.aggregate();
            return Some(format!("impersonating an invalid key in extra is not allowed: {why}"));
        }
        if *key != key.to_lowercase() {
            return Some(format!("impersonating a non-lowercase key in extra is not allowed: {key:?}"));
        }
        if values.is_empty() {
            return Some("impersonating empty values in extra is not allowed".to_owned());
        }
        if values.iter().any(String::is_empty) {
            return Some("impersonating the empty string value in extra is not allowed".to_owned());
        }
    }
    None
}

fn node_name(user: &str) -> Option<&str> {
    user.strip_prefix("system:node:").filter(|name| names::dns1123_subdomain(name).is_empty())
}

/// Namespace and name of a service account.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let fits = names::dns1123_label(namespace).is_empty() && names::dns1123_subdomain(name).is_empty();
    fits.then_some((namespace, name))
}

/// Whether the user is a service account whose token is bound to a pod on the node.
fn is_on_node(user: &UserInfo, node: &str) -> bool {
    let on = user.extra.get(NODE_NAME).map(Vec::as_slice).unwrap_or_default();
    service_account(&user.name).is_some() && matches!(on, [only] if only == node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(user: UserInfo) -> Attributes {
        Attributes {
            user,
            verb: "list".into(),
            is_resource: true,
            version: "v1".into(),
            resource: "pods".into(),
            namespace: "ns".into(),
            ..Attributes::default()
        }
    }

    fn told(mode: &Mode) -> Vec<String> {
        let one = |a: &Attributes| {
            let sub = if a.subresource.is_empty() { String::new() } else { format!("/{}", a.subresource) };
            format!("{} {}.{}{sub} {}:{}", a.verb, a.resource, a.group, a.namespace, a.name)
        };
        let step = |step: &Step| match step {
            Step::Allowed(a) => one(a),
            Step::AllOrEach(all, each) => format!("{} or {}", one(all), each.len()),
            Step::Never(a, why) => format!("never {}: {why}", one(a)),
        };
        mode.steps.iter().map(step).collect()
    }

    fn named(name: &str) -> UserInfo {
        UserInfo { name: name.into(), ..UserInfo::default() }
    }

    #[test]
    fn users_need_the_right_to_the_deed_and_to_the_user() {
        let mut wanted = named("jane");
        wanted.uid = "7".into();
        wanted.groups = vec!["dev".into()];
        wanted.extra.insert("acme.io/a".into(), vec!["b".into()]);
        let found = modes(&wanted, &asking(named("bob")));
        assert_eq!(found.iter().map(|m| m.name).collect::<Vec<_>>(), ["user-info", "legacy"]);
        let verb = "impersonate:user-info";
        let expected = [
            "impersonate-on:user-info:list pods. ns:".to_owned(),
            format!("{verb} users.authentication.k8s.io :jane"),
            format!("{verb} uids.authentication.k8s.io :7"),
            format!("{verb} groups.authentication.k8s.io :dev"),
            format!("{verb} userextras.authentication.k8s.io/acme.io/a :b"),
        ];
        assert_eq!(told(&found[0]), expected);
        let expected = [
            "impersonate users. :jane",
            "impersonate uids.authentication.k8s.io :7",
            "impersonate groups. :dev",
            "impersonate userextras.authentication.k8s.io/acme.io/a :b",
        ];
        assert_eq!(told(&found[1]), expected);
        assert_eq!(found[0].user.groups, ["dev", "system:authenticated"]);
        assert_eq!((found[0].constraint, found[1].constraint), (verb, ""));
    }

    #[test]
    fn nodes_and_service_accounts_are_acted_as_by_name_only() {
        let found = modes(&named("system:node:n1"), &asking(named("bob")));
        assert_eq!(found.iter().map(|m| m.name).collect::<Vec<_>>(), ["arbitrary-node", "legacy"]);
        assert_eq!(told(&found[0])[1], "impersonate:arbitrary-node nodes.authentication.k8s.io :n1");
        assert_eq!(found[0].user.groups, ["system:nodes", "system:authenticated"]);
        assert_eq!(found[1].user.groups, ["system:authenticated"]);
        let found = modes(&named("system:serviceaccount:a:b"), &asking(named("bob")));
        assert_eq!(
            told(&found[0])[1],
            "impersonate:serviceaccount serviceaccounts.authentication.k8s.io a:b"
        );
        let groups = ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"];
        assert_eq!(found[0].user.groups, groups);
        let mut wanted = named("system:serviceaccount:a:b");
        wanted.groups = vec!["g".into()];
        assert_eq!(modes(&wanted, &asking(named("bob"))).len(), 1, "only the old way");
        assert_eq!(modes(&named("system:node:N_1"), &asking(named("bob")))[0].name, "user-info");
    }

    #[test]
    fn a_service_account_may_act_as_the_node_it_runs_on() {
        let mut agent = named("system:serviceaccount:kube-system:agent");
        agent.extra.insert(NODE_NAME.into(), vec!["n1".into()]);
        agent.extra.insert("authentication.kubernetes.io/pod-name".into(), vec!["p".into()]);
        let found = modes(&named("system:node:n1"), &asking(agent.clone()));
        let names: Vec<&str> = found.iter().map(|m| m.name).collect();
        assert_eq!(names, ["associated-node", "arbitrary-node", "legacy"]);
        assert_eq!(told(&found[0])[1], "impersonate:associated-node nodes.authentication.k8s.io :*");
        let Step::Allowed(on) = &found[0].steps[0] else { panic!("a check") };
        let keys = [NODE_NAME, "authentication.kubernetes.io/pod-name"];
        assert_eq!(on.user.extra[NODE_KEYS], keys);
        assert_eq!(found[0].user.name, "system:node:n1");
        assert_eq!(modes(&named("system:node:n2"), &asking(agent))[0].name, "arbitrary-node");
    }

    #[test]
    fn constrained_ways_refuse_what_the_old_way_lets_pass() {
        let mut wanted = named("jane");
        wanted.groups = vec![SYSTEM_MASTERS.into()];
        let found = modes(&wanted, &asking(named("bob")));
        let told = told(&found[0]);
        assert!(told[2].ends_with("impersonating the system:masters group is not allowed"), "{told:?}");
        assert_eq!(found[1].steps.len(), 2);
        let refused = |key: &str, values: &[&str]| {
            misfit(&BTreeMap::from([(key.to_owned(), values.iter().map(|v| (*v).to_owned()).collect())]))
        };
        assert_eq!(refused("a.io/b", &["x"]), None);
        let why = "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: \"b\": must be a \
                   domain-prefixed path (such as \"acme.io/foo\")";
        assert_eq!(refused("b", &["x"]).as_deref(), Some(why));
        assert!(refused("a.io/B", &["x"]).is_some_and(|why| why.contains("non-lowercase")));
        assert!(refused("a.io/b", &[]).is_some() && refused("a.io/b", &[""]).is_some());
    }

    #[test]
    fn many_groups_are_asked_for_at_once() {
        let mut wanted = named("jane");
        wanted.groups = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let found = modes(&wanted, &asking(named("bob")));
        assert_eq!(told(&found[0])[2], "impersonate:user-info groups.authentication.k8s.io :* or 4");
        assert_eq!(found[1].steps.len(), 5);
    }
}
