//! Pod links against the real kernel, in namespaces of the test's own.

mod support;

use coracle_cri::{PodNetwork as _, PortMapping, Protocol};
use coracle_network::{PodLinks, purge};
use support::{Netns, ask, config, on_a_node, output, request, uplink};

fn mapping(container_port: u16, host_port: u16) -> PortMapping {
    PortMapping { container_port, host_port, host_ip: None, protocol: Protocol::Tcp }
}

/// What the node's namespace holds: links, addresses, routes and rules.
fn inventory() -> String {
    ["link show", "addr show", "route show table all", "neigh show nud permanent"]
        .map(|a| output("ip", a))
        .concat()
        + &output("nft", "list ruleset")
        + &std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("sysctl")
}

#[test]
fn pods_reach_each_other_the_node_and_the_world_and_nothing_is_left() {
    on_a_node(|directory| async move {
        let (client, one, two) = (
            Netns::new(directory.join("client")),
            Netns::new(directory.join("one")),
            Netns::new(directory.join("two")),
        );
        uplink(&client);
        let before = inventory();
        let config = config("aabbccd1", &directory);
        let pods = PodLinks::open(config.clone()).await.expect("open");
        let first = pods.setup(&request("one", &one, vec![mapping(8080, 18080)])).await.expect("setup")[0];
        let second = pods.setup(&request("two", &two, vec![])).await.expect("setup")[0];
        assert_eq!(first.to_string(), "10.244.0.2");
        one.serve(8080, "one");
        two.serve(8080, "two");
        client.serve(80, "world");

        assert_eq!(one.run(|| ask(second, 8080)).expect("pod to pod"), "two 10.244.0.2");
        assert_eq!(ask(first, 8080).expect("node to pod"), "one 192.0.2.77");
        let world = one.run(|| ask([192, 0, 2, 1], 80)).expect("pod to world");
        assert_eq!(world, "world 192.0.2.77", "masqueraded");
        assert!(output("ip", "link show").contains("mtu 1400"));

        assert_eq!(client.run(|| ask([192, 0, 2, 77], 18080)).expect("host port"), "one 192.0.2.1");
        assert_eq!(ask([192, 0, 2, 77], 18080).expect("host port from the node"), "one 192.0.2.77");
        assert!(ask([127, 0, 0, 1], 18080).expect("host port on localhost").starts_with("one "));
        assert!(one.run(|| ask([192, 0, 2, 77], 18080)).expect("host port to itself").starts_with("one "));

        // A restart of the daemon adopts what it finds.
        drop(pods);
        let pods = PodLinks::open(config.clone()).await.expect("open again");
        assert_eq!(
            pods.setup(&request("one", &one, vec![mapping(8080, 18080)])).await.expect("again")[0],
            first
        );
        assert_eq!(client.run(|| ask([192, 0, 2, 77], 18080)).expect("host port"), "one 192.0.2.1");
        let listed = output("nft", "list table ip coracle-aabbccd1-pods");
        assert!(listed.contains("tcp . 18080 : 10.244.0.2 . 8080"), "{listed}");

        pods.teardown("one").await.expect("teardown");
        pods.teardown("one").await.expect("teardown is idempotent");
        assert!(client.run(|| ask([192, 0, 2, 77], 18080)).is_err());
        assert!(ask(second, 8080).is_ok());
        purge(&config).await.expect("purge");
        assert_eq!(inventory(), before);
        assert!(!config.state.exists());
    });
}

#[test]
fn a_failed_setup_leaves_no_link_and_no_address() {
    on_a_node(|directory| async move {
        let config = config("aabbccd2", &directory);
        let pods = PodLinks::open(config.clone()).await.expect("open");
        let before = output("ip", "link show");
        let one = Netns::new(directory.join("one"));
        let mut wrong = request("one", &one, vec![]);
        wrong.netns = directory.join("missing");
        pods.setup(&wrong).await.expect_err("no such namespace");
        // The namespace already has an eth0: the kernel refuses the second.
        pods.setup(&request("first", &one, vec![])).await.expect("setup");
        pods.setup(&request("second", &one, vec![])).await.expect_err("eth0 exists");
        pods.teardown("first").await.expect("teardown");
        assert_eq!(output("ip", "link show"), before);
        assert_eq!(std::fs::read_dir(config.state.join("pods")).expect("state").count(), 0);
        purge(&config).await.expect("purge");
    });
}

#[test]
fn pods_pass_a_filter_that_drops_by_policy_and_the_rules_go_again() {
    on_a_node(|directory| async move {
        let (one, two) = (Netns::new(directory.join("one")), Netns::new(directory.join("two")));
        let config = config("aabbccd3", &directory);
        output("nft", "add table ip filter");
        output("nft", "add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
        let before = output("nft", "list ruleset");
        assert!(before.contains("policy drop"), "{before}");
        let pods = PodLinks::open(config.clone()).await.expect("open");
        pods.setup(&request("one", &one, vec![])).await.expect("setup");
        let second = pods.setup(&request("two", &two, vec![])).await.expect("setup")[0];
        two.serve(8080, "two");
        assert!(one.run(|| ask(second, 8080)).is_ok());
        purge(&config).await.expect("purge");
        assert_eq!(output("nft", "list ruleset"), before);
    });
}
