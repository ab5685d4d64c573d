use std::path::PathBuf;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::*;
use crate::scratch::Scratch;

/// Serves with `Done` as the answer to everything.
fn serve(runtime: &Path, callers: Option<Callers>) -> PathBuf {
    let mut socket = LocalSocket::bind(runtime).unwrap();
    let path = socket.kept().path().to_owned();
    if let Some(callers) = callers {
        socket.callers = callers;
    }
    let (sender, mut receiver) = mpsc::channel::<Asked>(8);
    tokio::spawn(socket.serve(sender));
    tokio::spawn(async move {
        while let Some(asked) = receiver.recv().await {
            let message = "served".to_owned();
            let _ = asked.answer.send(Response::Done { message });
        }
    });
    path
}

async fn ask(path: &Path, line: &[u8]) -> Response {
    let mut stream = UnixStream::connect(path).await.unwrap();
    let _ = stream.write_all(line).await;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await.unwrap();
    serde_json::from_str(&answer).unwrap()
}

fn code(response: &Response) -> Option<FailureCode> {
    match response {
        Response::Failed(failure) => Some(failure.code),
        _ => None,
    }
}

const REQUESTS: [&str; 11] = [
    r#"{"request":"Status"}"#,
    r#"{"request":"Peers"}"#,
    r#"{"request":"Peer","target":"a"}"#,
    r#"{"request":"Routes"}"#,
    r#"{"request":"Ready"}"#,
    r#"{"request":"Ping","target":"a","timeout_ms":10}"#,
    r#"{"request":"Network"}"#,
    r#"{"request":"Join","token":"x"}"#,
    r#"{"request":"Leave"}"#,
    r#"{"request":"RotateKeys","identity":false}"#,
    r#"{"request":"Statement","statement":"x"}"#,
];

#[test]
fn what_has_the_right_group_is_not_touched() {
    let scratch = Scratch::new();
    let folder = scratch.path("run");
    fs::create_dir(&folder).unwrap();
    let before = fs::metadata(&folder).unwrap();
    // Any chown(2) would set a new time of change; the kernel's clock for it has coarse ticks.
    std::thread::sleep(Duration::from_millis(30));
    give_to_group(&folder, before.gid()).unwrap();
    let after = fs::metadata(&folder).unwrap();
    let changed = |metadata: &fs::Metadata| (metadata.ctime(), metadata.ctime_nsec());
    assert_eq!(changed(&before), changed(&after));
}

#[tokio::test]
async fn silent_clients_keep_nobody_out() {
    let scratch = Scratch::new();
    let path = serve(&scratch.path("run"), None);
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }
    let start = Instant::now();
    let response = ask(&path, b"{\"request\":\"Status\"}\n").await;
    assert_eq!(code(&response), None);
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn clients_that_have_their_answer_keep_nobody_out() {
    let scratch = Scratch::new();
    for (name, callers) in [("owner", None), ("reader", Some(caller::readers()))] {
        let path = serve(&scratch.path(name), callers);
        let mut idle = Vec::new();
        for _ in 0..100 {
            let mut stream = BufReader::new(UnixStream::connect(&path).await.unwrap());
            let line = b"{\"request\":\"Status\"}\n";
            stream.get_mut().write_all(line).await.unwrap();
            let mut answer = String::new();
            stream.read_line(&mut answer).await.unwrap();
            assert!(answer.contains("served"), "{name}: {answer:?}");
            idle.push(stream);
        }
        let response = ask(&path, b"{\"request\":\"Peers\"}\n").await;
        assert_eq!(code(&response), None, "{name}");
        // The first have lost their places, the last can go on.
        let mut nothing = String::new();
        assert_eq!(idle[0].read_line(&mut nothing).await.unwrap(), 0, "{name}");
        let last = idle.last_mut().unwrap();
        let line = b"{\"request\":\"Ready\"}\n";
        last.get_mut().write_all(line).await.unwrap();
        last.read_line(&mut nothing).await.unwrap();
        assert!(nothing.contains("served"), "{name}");
    }
}

#[tokio::test]
async fn strangers_get_one_refusal_whatever_the_sockets_mode() {
    let scratch = Scratch::new();
    let stranger = caller::nobody_but(65_533);
    let path = serve(&scratch.path("run"), Some(stranger));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    for request in REQUESTS {
        let response = ask(&path, format!("{request}\n").as_bytes()).await;
        assert_eq!(code(&response), Some(FailureCode::Permission), "{request}");
    }
}

#[tokio::test]
async fn readers_may_ask_and_not_change() {
    let scratch = Scratch::new();
    let path = serve(&scratch.path("run"), Some(caller::readers()));
    for (number, request) in REQUESTS.iter().enumerate() {
        let response = ask(&path, format!("{request}\n").as_bytes()).await;
        let expected = (number >= 7).then_some(FailureCode::Permission);
        assert_eq!(code(&response), expected, "{request}");
    }
}

#[tokio::test]
async fn nonsense_and_endless_lines_are_answered_once() {
    let scratch = Scratch::new();
    let path = serve(&scratch.path("run"), None);
    for line in [
        b"nonsense\n".to_vec(),
        b"{\"request\":\"Fly\"}\n".to_vec(),
        vec![b'x'; 70_000],
    ] {
        let response = ask(&path, &line).await;
        assert_eq!(code(&response), Some(FailureCode::Usage));
    }
    let Response::Failed(failure) = ask(&path, b"{\"request\":\"Join\",\"token\":7}\n").await
    else {
        panic!("a join without a token was accepted");
    };
    assert!(
        !failure.message.contains('7') || failure.message.contains("column"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn one_connection_can_ask_several_things_at_once() {
    let scratch = Scratch::new();
    let path = serve(&scratch.path("run"), None);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream
        .write_all(b"{\"request\":\"Status\"}\n{\"request\":\"Peers\"}\n{\"requ")
        .await
        .unwrap();
    stream.write_all(b"est\":\"Ready\"}\n").await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    for _ in 0..3 {
        let line = lines.next_line().await.unwrap().unwrap();
        assert!(line.contains("served"), "{line}");
    }
}

#[tokio::test]
async fn the_socket_is_closed_to_others_and_replaces_a_stale_one_but_nothing_else() {
    let scratch = Scratch::new();
    let runtime = scratch.path("run");
    let socket = LocalSocket::bind(&runtime).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&runtime), mode(socket.kept().path())), (0o750, 0o660));
    std::mem::forget(socket);
    drop(LocalSocket::bind(&runtime).unwrap());
    fs::write(runtime.join(SOCKET), "a file").unwrap();
    let error = LocalSocket::bind(&runtime).err().unwrap().to_string();
    assert!(error.contains("no socket"), "{error}");
}
