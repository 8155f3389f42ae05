//! Exec, attach and port-forward.

use super::*;

pub async fn exec_streams_both_ways(lab: &Lab) {
    let pod = lab.sandbox("exec").await;
    let id = lab.run(&pod, shell("main", "sleep 100")).await;
    let command = ["sh", "-c", "cat; echo end >&2; exit 7"].map(str::to_owned).to_vec();
    let request = ExecRequest { container_id: id.clone(), command, tty: false, stdin: true };
    let mut session = lab.runtime.exec(request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let big = "x".repeat(300_000);
    let feed = tokio::spawn(async move {
        stdin.write_all(big.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    feed.await.unwrap();
    let mut err = String::new();
    session.stderr.unwrap().read_to_string(&mut err).await.unwrap();
    assert_eq!((out.len(), err.as_str()), (300_000, "end\n"));
    assert_eq!(session.exit.await.unwrap().unwrap(), 7);
    let error = lab.runtime.exec_sync(&id, vec!["absent".into()], 5).await.unwrap_err().to_string();
    assert!(error.ends_with("exec: \"absent\": executable file not found in $PATH: unknown"), "{error}");
    let late = lab.runtime.exec_sync(&id, vec!["sleep".into(), "50".into()], 1).await.unwrap_err();
    assert!(matches!(late, CriError::DeadlineExceeded(_)), "{late}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!lab.output(&id, "ps").await.contains("sleep 50"), "a timed-out command must die");
    lab.remove(&pod).await;
}

pub async fn exec_terminal_resizes(lab: &Lab) {
    let pod = lab.sandbox("tty").await;
    let id = lab.run(&pod, shell("main", "sleep 100")).await;
    let request =
        ExecRequest { container_id: id.clone(), command: vec!["sh".into()], tty: true, stdin: true };
    let mut session = lab.runtime.exec(request).await.unwrap();
    session.resize.send(TerminalSize { width: 111, height: 33 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"stty size; test -t 0 && echo IS-A-TTY; exit 5\n").await.unwrap();
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    assert!(out.contains("33 111") && out.contains("IS-A-TTY"), "{out}");
    assert_eq!(session.exit.await.unwrap().unwrap(), 5);
    lab.remove(&pod).await;
}

pub async fn attach_follows_output_and_feeds_stdin(lab: &Lab) {
    let pod = lab.sandbox("attach").await;
    for tty in [false, true] {
        let config = ContainerConfig {
            stdin: true,
            stdin_once: true,
            tty,
            ..shell("main", "read x; echo got $x; exit 3")
        };
        let config =
            ContainerConfig { metadata: ContainerMetadata { name: format!("c{tty}"), attempt: 0 }, ..config };
        let id = lab.run(&pod, config).await;
        let mut session = lab.runtime.attach(&id, true, tty).await.unwrap();
        session.stdin.as_mut().unwrap().write_all(b"word\n").await.unwrap();
        let mut out = String::new();
        session.stdout.read_to_string(&mut out).await.unwrap();
        assert!(out.contains("got word"), "{tty} {out}");
        assert_eq!(session.exit.await.unwrap().unwrap(), 3);
        assert_eq!(lab.exited(&id).await.exit_code, 3);
    }
    // Who attaches once and closes the input ends it for the container, though he goes on listening.
    let config = ContainerConfig { stdin: true, stdin_once: true, ..shell("once", "cat; echo over") };
    let id = lab.run(&pod, config).await;
    let mut session = lab.runtime.attach(&id, true, false).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"all\n").await.unwrap();
    drop(stdin);
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "all\nover\n");
    assert_eq!(lab.exited(&id).await.exit_code, 0);
    lab.remove(&pod).await;
}

pub async fn port_forward_reaches_loopback(lab: &Lab) {
    let pod = lab.sandbox("forward").await;
    lab.run(&pod, shell("main", "nc -l -p 8080 -e cat; sleep 100")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut stream = lab.runtime.port_forward(&pod.0, 8080).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut got = [0u8; 4];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
    assert!(lab.runtime.port_forward(&pod.0, 8081).await.is_err());
    lab.remove(&pod).await;
}
