//! Connections that are not there, break, or break again and again.

use super::*;

/// Accepts connections and closes each as soon as a request could have arrived on it; the number of them.
async fn slammer() -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            *counter.lock().unwrap() += 1;
            let mut seen = 0;
            let mut buffer = [0; 4_096];
            // The preface and the settings are shorter than a request's headers and value.
            while seen < 600 {
                match socket.read(&mut buffer).await {
                    Ok(read) if read > 0 => seen += read,
                    _ => break,
                }
            }
        }
    });
    (address, count)
}

#[tokio::test]
async fn no_server_there_is_definite() {
    let client = Client::connect(ClientOptions::pinned(no_server())).unwrap();
    let begun = Instant::now();
    let error = client.strong("bank").put("k", "v").await.unwrap_err();
    assert!(matches!(&error, Error::Failed(f) if f.reason == Reason::Unreachable), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn a_connection_that_breaks_after_sending_is_unknown() {
    let (address, connections) = slammer().await;
    let client =
        Client::connect(ClientOptions { via: Via::Unary, ..ClientOptions::pinned(address) }).unwrap();
    let value = vec![7; 2_000];
    let error = client.strong("bank").put("k", value.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Unknown(f) if f.reason == Reason::ConnectionLost), "{error}");
    assert_eq!(*connections.lock().unwrap(), ATTEMPTS as usize);
    assert!(!client.strong("bank").get("k").await.unwrap_err().is_unknown());
}

#[tokio::test]
async fn the_breaker_stops_calls_to_a_node_that_keeps_failing() {
    let (address, connections) = slammer().await;
    let options = ClientOptions { attempts: 1, via: Via::Unary, ..ClientOptions::pinned(address) };
    let client = Client::connect(options).unwrap();
    let value = vec![7; 2_000];
    for _ in 0..5 {
        assert!(client.strong("bank").put("k", value.clone()).await.unwrap_err().is_unknown());
    }
    let refused = client.strong("bank").put("k", value).await.unwrap_err();
    assert!(matches!(&refused, Error::Failed(f) if f.detail("breaker") == Some("open")), "{refused}");
    assert_eq!(*connections.lock().unwrap(), 5);
}

/// Passes connections on to a node; each count sent cuts those that are open, and later ones are passed on
/// again.
async fn cuttable(node: String) -> (String, watch::Sender<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (cuts, cut) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            let (node, mut cut) = (node.clone(), cut.clone());
            cut.mark_unchanged();
            tokio::spawn(async move {
                let mut inside = TcpStream::connect(node).await.unwrap();
                tokio::select! {
                    _ = cut.changed() => {}
                    _ = tokio::io::copy_bidirectional(&mut outside, &mut inside) => {}
                }
            });
        }
    });
    (address, cuts)
}

#[tokio::test]
async fn one_lost_connection_is_one_failure_however_many_calls_were_on_it() {
    const CALLS: usize = 64;
    let fake = Fake::plays((0..CALLS).map(|_| Act::Wait(Duration::from_secs(30))));
    let (address, cuts) = cuttable(fake.start().await).await;
    let options = ClientOptions {
        attempts: 1,
        read_timeout: Duration::from_secs(20),
        ..ClientOptions::pinned(address)
    };
    let client = Client::connect(options).unwrap();
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.strong("bank").get("k").await })
        })
        .collect();
    while fake.script(|script| script.calls) < CALLS {
        sleep(Duration::from_millis(5)).await;
    }
    cuts.send_modify(|cuts| *cuts += 1);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().reason(), Reason::ConnectionLost);
    }
    // The node is there again: it is asked and not avoided.
    client.strong("bank").get("k").await.unwrap();
    assert_eq!(fake.script(|script| script.calls), CALLS + 1);
}
