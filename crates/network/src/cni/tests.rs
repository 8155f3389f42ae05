//! A chain of two plug-ins that write down what they are told.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Appends command, interface and whether there was a result before to a file; fails where a file `fail` is.
const PLUGIN: &str = r#"#!/bin/sh
input=$(cat)
case "$input" in *prevResult*) before=with ;; *) before=without ;; esac
echo "$(basename "$0") $CNI_COMMAND $CNI_IFNAME $before" >> "$(dirname "$0")/said"
if [ "$CNI_COMMAND" = ADD ] && [ -e "$(dirname "$0")/fail-$(basename "$0")" ]; then
    echo '{"code": 7, "msg": "told to fail"}'; exit 1
fi
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]}'
exit 0
"#;

struct Chain {
    dir: tempfile::TempDir,
    network: Arc<CniNetwork>,
}

async fn chain() -> Chain {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for name in ["first", "second"] {
        fs::write(bin.join(name), PLUGIN).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let list = r#"{"name": "n", "cniVersion": "1.1.0", "plugins": [{"type": "first"}, {"type": "second"}]}"#;
    fs::write(dir.path().join("1.conflist"), list).unwrap();
    let network = CniNetwork::open(config_in(dir.path())).await.unwrap();
    Chain { dir, network }
}

fn config_in(dir: &Path) -> CniConfig {
    CniConfig { conf_dir: dir.to_owned(), bin_dirs: vec![dir.join("bin")], cache: dir.join("cache") }
}

impl Chain {
    fn said(&self) -> Vec<String> {
        let path = self.dir.path().join("bin/said");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }
    fn attachment(&self, netns: &Path) -> Attachment {
        Attachment {
            sandbox_id: "s1".into(),
            netns: netns.to_owned(),
            args: String::new(),
            capabilities: Map::new(),
            list: NetworkList::load(self.dir.path()).unwrap(),
            result: Value::Null,
        }
    }
}

#[tokio::test]
async fn a_chain_is_run_forth_with_each_result_and_back_with_the_last() {
    let chain = chain().await;
    assert_eq!(chain.said(), ["first GC  without", "second GC  without"]);
    let mut attachment = chain.attachment(chain.dir.path());
    attachment.result = chain.network.add(&attachment).await.unwrap();
    assert_eq!(chain.said(), ["first ADD eth0 without", "second ADD eth0 with"]);
    chain.network.save(&attachment).unwrap();
    chain.network.check(&attachment).await.unwrap();
    assert_eq!(chain.said(), ["first CHECK eth0 with", "second CHECK eth0 with"]);
    chain.network.teardown("s1").await.unwrap();
    assert_eq!(chain.said(), ["second DEL eth0 with", "first DEL eth0 with"]);
    chain.network.teardown("s1").await.unwrap();
    assert!(chain.said().is_empty(), "what is gone is not deleted twice");
}

#[tokio::test]
async fn readiness_is_asked_of_the_plugins_and_fails_without_a_configuration() {
    let chain = chain().await;
    chain.said();
    chain.network.ready().await.unwrap();
    assert_eq!(chain.said(), ["first STATUS  without", "second STATUS  without"]);
    fs::remove_file(chain.dir.path().join("1.conflist")).unwrap();
    let why = chain.network.ready().await.unwrap_err();
    assert!(why.starts_with("Network plugin returns error: cni plugin not initialized: no network config"));
}

#[tokio::test]
async fn a_plugin_that_fails_is_named_with_what_it_said() {
    let chain = chain().await;
    fs::write(chain.dir.path().join("bin/fail-second"), "").unwrap();
    let error = chain.network.add(&chain.attachment(chain.dir.path())).await.unwrap_err();
    assert_eq!(error.to_string(), "plugin type=\"second\" failed (add): told to fail");
}

#[tokio::test]
async fn what_a_reboot_ended_is_given_back_at_the_next_start() {
    let chain = chain().await;
    chain.network.save(&chain.attachment(Path::new("/run/no/such/netns"))).unwrap();
    chain.said();
    CniNetwork::open(config_in(chain.dir.path())).await.unwrap();
    let said = chain.said();
    assert_eq!(said[..2], ["second DEL eth0 without", "first DEL eth0 without"]);
    assert!(chain.network.attachment("s1").is_none());
}
