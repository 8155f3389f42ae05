//! Who gets memory from where, on made-up machines.

use serde_json::{Value, json};

use super::*;

const GI: u64 = 1 << 30;

/// `nodes` with 10 Gi each, 1 Gi of which is kept back, and 2 Gi of huge pages on the first.
fn book(nodes: u32) -> Book {
    let one = |id: u32| NumaNode {
        id,
        memory: 10 * GI,
        huge_pages: if id == 0 { [("hugepages-1Gi".to_owned(), 2 * GI)].into() } else { BTreeMap::new() },
        ..NumaNode::default()
    };
    let nodes: Vec<NumaNode> = (0..nodes).map(one).collect();
    let reserved = nodes.iter().map(|n| (n.id, [(MEMORY.to_owned(), GI)].into())).collect();
    Book::new(&nodes, &reserved)
}

fn container(name: &str, memory: &str) -> Value {
    let amounts = json!({"cpu": "1", "memory": memory});
    json!({"name": name, "resources": {"requests": amounts, "limits": amounts}})
}

fn pod(uid: &str, init: &[Value], containers: &[Value]) -> Pod {
    let mut pod = crate::pod::tests::pod(json!({"initContainers": init, "containers": containers}));
    pod.metadata.uid = Some(uid.into());
    pod
}

fn give(book: &mut Book, pod: &Pod, near: Hint) -> Result<(), String> {
    containers(pod).try_for_each(|(c, _)| book.allocate(pod, c, near).map(|_| ()))
}

fn simple(uid: &str, memory: &str) -> Pod {
    pod(uid, &[], &[container("c", memory)])
}

fn nodes(book: &Book, uid: &str) -> Vec<u32> {
    book.blocks(uid, "c").map(|blocks| blocks[0].nodes.clone()).unwrap_or_default()
}

fn free(book: &Book) -> Vec<u64> {
    book.machine().values().map(|n| n.memory_map[MEMORY].free / GI).collect()
}

fn shown(hints: &Hints) -> Vec<(Vec<u32>, bool)> {
    let list = hints.get(MEMORY).cloned().flatten().unwrap_or_default();
    list.iter().map(|h| (h.nodes.expect("nodes").nodes().collect(), h.preferred)).collect()
}

#[test]
fn what_is_kept_back_and_huge_pages_are_not_for_pods() {
    assert_eq!(free(&book(2)), [7, 9]);
}

#[test]
fn hints_prefer_as_few_nodes_as_would_do_on_an_empty_machine() {
    let mut book = book(2);
    let eight = simple("a", "8Gi");
    let hints = |book: &Book, pod: &Pod| shown(&book.hints(pod, &crate::pod::spec(pod).containers[0]));
    assert_eq!(hints(&book, &eight), [(vec![1], true), (vec![0, 1], false)]);
    give(&mut book, &eight, Hint::default()).expect("given");
    assert_eq!(nodes(&book, "a"), [1]);
    assert_eq!(hints(&book, &eight), [(vec![1], true)], "what was given is given again");
    // One node would do, but none has so much left; over both it may not spread, since one is in use by itself.
    assert_eq!(hints(&book, &simple("b", "8Gi")), []);
    assert_eq!(
        give(&mut book, &simple("b", "8Gi"), Hint::default()).unwrap_err(),
        "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available"
    );
}

#[test]
fn nodes_that_are_used_together_are_used_together_only() {
    let mut book = book(3);
    let wide = simple("wide", "12Gi");
    give(&mut book, &wide, Hint::default()).expect("given");
    assert_eq!((nodes(&book, "wide"), free(&book)), (vec![0, 1], vec![0, 4, 9]));
    give(&mut book, &simple("small", "1Gi"), Hint::default()).expect("given");
    assert_eq!(nodes(&book, "small"), [2]);
    give(
        &mut book,
        &simple("also", "3Gi"),
        Hint { nodes: Some([0, 1].into_iter().collect()), preferred: false },
    )
    .expect("given");
    assert_eq!(nodes(&book, "also"), [0, 1]);
    let across = Hint { nodes: Some([1, 2].into_iter().collect()), preferred: false };
    let violates = give(&mut book, &simple("x", "1Gi"), across).unwrap_err();
    assert_eq!(violates, "[memorymanager] preferred hint violates NUMA node allocation");
    assert!(book.keep(|uid| uid == "small") && !book.keep(|uid| uid == "small"));
    assert_eq!(free(&book), [7, 9, 8]);
    assert_eq!(book.machine()[&0].cells, [0], "nobody spreads over it any more");
}

#[test]
fn a_hint_that_is_too_small_is_widened() {
    let mut book = book(2);
    let narrow = Hint { nodes: Some([0].into_iter().collect()), preferred: true };
    give(&mut book, &simple("a", "12Gi"), narrow).expect("given");
    assert_eq!(nodes(&book, "a"), [0, 1]);
    let full = give(&mut book, &simple("b", "12Gi"), narrow).unwrap_err();
    assert_eq!(full, "[memorymanager] failed to find NUMA nodes to extend the current topology hint");
}

#[test]
fn what_init_containers_had_is_used_again_and_given_back() {
    let mut book = book(1);
    let pod = pod(
        "p",
        &[container("i", "5Gi"), container("j", "6Gi")],
        &[container("c", "3Gi"), container("d", "4Gi")],
    );
    let hints = book.pod_hints(&pod);
    assert_eq!(shown(&hints), [(vec![0], true)], "seven are free and needed at the most");
    give(&mut book, &pod, Hint::default()).expect("given");
    let sizes = |book: &Book| -> Vec<u64> {
        ["i", "j", "c", "d"].map(|c| book.blocks("p", c).map_or(9, |b| b[0].size / GI)).into()
    };
    assert_eq!((sizes(&book), free(&book)), (vec![0, 0, 3, 4], vec![0]));
    assert!(book.starts(&pod, &crate::pod::spec(&pod).containers[0]));
    assert_eq!((sizes(&book), free(&book)), (vec![9, 9, 3, 4], vec![0]));
}

#[test]
fn huge_pages_come_from_nodes_that_have_them() {
    let mut book = book(2);
    let amounts = json!({"cpu": "1", "memory": "1Gi", "hugepages-1Gi": "2Gi"});
    let pod = pod("p", &[], &[json!({"name": "c", "resources": {"limits": amounts}})]);
    give(&mut book, &pod, Hint::default()).expect("given");
    let blocks = book.blocks("p", "c").expect("given");
    assert_eq!(
        blocks.iter().map(|b| (b.kind.as_str(), b.nodes.as_slice())).collect::<Vec<_>>(),
        [("hugepages-1Gi", [0].as_slice()), ("memory", [0].as_slice())]
    );
    assert_eq!(book.machine()[&0].number_of_assignments, 2);
}

#[test]
fn a_machine_that_has_changed_is_not_taken_over() {
    let mut old = book(2);
    give(&mut old, &simple("a", "12Gi"), Hint::default()).expect("given");
    let mut new = book(2);
    assert_eq!(new.restore(old.machine(), old.entries().clone()), Ok(()));
    assert_eq!(new, old);
    let other = book(1).restore(old.machine(), old.entries().clone()).unwrap_err();
    let text =
        "[memorymanager] (pod: a, container: c) the memory assignment uses the NUMA that does not exist";
    assert_eq!(other, text);
    let more = book(3).restore(old.machine(), old.entries().clone()).unwrap_err();
    assert_eq!(more, "[memorymanager] the expected machine state is different from the real one");
    assert!(
        book(1).restore(&Machine::new(), old.entries().clone()).unwrap_err().contains("can not be empty")
    );
}
