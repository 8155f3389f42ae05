//! logs -f, exec with a terminal, cp, port-forward.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;

use coracle_testkit::kubectl;

use crate::{IMAGE, MAIN, Story};

pub fn run(story: &Story) {
    logs(story);
    exec(story);
    copy(story);
    port_forward(story);
}

fn logs(story: &Story) {
    let line = "for i in 1 2 3; do echo line $i; sleep 0.3; done; echo last >&2; sleep 3600";
    let args = ["run", "talker", "-n", "shop", "--image", IMAGE, "--restart=Never", "--", "sh", "-c", line];
    story.machine.kubectl(MAIN, &args).ok();
    story.kubectl("wait -n shop pod/talker --for=condition=Ready --timeout=30s");
    let mut follow = story
        .machine
        .kubectl_command(MAIN, &["logs", "-f", "-n", "shop", "talker"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let lines: Vec<String> =
        BufReader::new(follow.stdout.take().expect("piped")).lines().take(4).map_while(Result::ok).collect();
    assert_eq!(lines, ["line 1", "line 2", "line 3", "last"]);
    let _ = follow.kill();
    let _ = follow.wait();
    assert_eq!(story.kubectl("logs -n shop talker --tail=1"), "last\n");
    let stamped = story.kubectl("logs -n shop talker --timestamps --tail=1");
    assert!(stamped.contains("T") && stamped.contains("Z last"), "{stamped}");
    story.kubectl("delete pod talker -n shop --grace-period=0 --force");
}

fn exec(story: &Story) {
    let pods = story.pods("app=web");
    let pod = &pods[0];
    let code = story.machine.kubectl(MAIN, &["exec", "-n", "shop", pod, "--", "sh", "-c", "exit 7"]);
    assert_eq!(code.status, 7, "{}", code.stderr);
    let mut piped = story
        .machine
        .kubectl_command(MAIN, &["exec", "-i", "-n", "shop", pod, "--", "tr", "a-z", "A-Z"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    piped.stdin.take().expect("piped").write_all(b"hello\n").expect("kubectl reads");
    let out = piped.wait_with_output().expect("kubectl ends");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "HELLO\n");

    // A terminal: `script` gives kubectl one; it is resized while the command runs.
    let inside = "until [ \"$(stty size 2>/dev/null)\" = \"33 111\" ]; do sleep 0.1; done; echo size $(stty size); \
                  until [ \"$(stty size)\" = \"44 122\" ]; do sleep 0.1; done; echo size $(stty size); exit 9";
    let config = story.machine.data(MAIN).join("kubeconfig");
    let line = format!(
        "stty rows 33 cols 111; (sleep 2; stty rows 44 cols 122 </dev/tty) & {} --kubeconfig {} exec -it -n shop {pod} -- sh -c '{}'",
        kubectl().display(),
        config.display(),
        inside.replace('\'', "'\\''"),
    );
    let out = run_program(story, "script", &["-qec", &line, "/dev/null"]);
    assert!(out.stdout.contains("size 33 111") && out.stdout.contains("size 44 122"), "{}", out.stdout);
    assert_eq!(out.status, 9, "{}", out.stdout);
    let missing = story.machine.kubectl(MAIN, &["exec", "-n", "shop", pod, "--", "nosuch"]).fails();
    assert!(missing.contains("nosuch"), "{missing}");
}

fn run_program(story: &Story, program: &str, args: &[&str]) -> coracle_testkit::Output {
    coracle_testkit::run(story.machine.command(Path::new(program)).args(args))
}

fn copy(story: &Story) {
    let pods = story.pods("app=web");
    let content: String = (0..20_000).map(|i| format!("{i}\n")).collect();
    let file = story.machine.file("numbers", &content);
    let back = story.machine.dir().join("back");
    let remote = format!("shop/{}:/tmp/numbers", pods[0]);
    story.machine.kubectl(MAIN, &["cp", &file.display().to_string(), &remote]).ok();
    story.machine.kubectl(MAIN, &["cp", &remote, &back.display().to_string()]).ok();
    assert_eq!(std::fs::read_to_string(back).expect("copied back"), content);
}

fn port_forward(story: &Story) {
    let mut forward = story
        .machine
        .kubectl_command(MAIN, &["port-forward", "-n", "shop", "deploy/web", ":8080"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut said = String::new();
    // The pipe stays open: kubectl reports every connection on it.
    let mut lines = BufReader::new(forward.stdout.take().expect("piped"));
    lines.read_line(&mut said).expect("kubectl speaks");
    let port = said.split("127.0.0.1:").nth(1).and_then(|r| r.split_whitespace().next()).unwrap_or("");
    for _ in 0..3 {
        let url = format!("http://127.0.0.1:{port}/");
        let answer = run_program(story, "busybox", &["wget", "-qO-", &url]).ok();
        assert!(answer.starts_with("web-"), "{answer}");
    }
    let _ = forward.kill();
    let _ = forward.wait();
}
