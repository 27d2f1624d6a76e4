//! Attempts to get past the guard, and the transfer's bounds against a real server on loopback.

mod guarded;
mod transfer;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::Fetcher;
use crate::config::FetchConfig;

const TIME: Duration = Duration::from_secs(60);

/// Serves one canned answer to every connection; `{port}` in it becomes the server's own.
async fn server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = answer.replace("{port}", &port.to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                if answer.contains("stall") {
                    tokio::time::sleep(Duration::from_secs(300)).await;
                }
            });
        }
    });
    port
}

fn config(allow: bool) -> FetchConfig {
    let allow_networks = if allow { vec!["127.0.0.0/8".parse().unwrap()] } else { Vec::new() };
    // Wide: the machine of the tests may be busy.
    FetchConfig { allow_networks, timeout: TIME, ..FetchConfig::default() }
}

fn fetcher(allow: bool) -> Fetcher {
    Fetcher::new(config(allow), 100)
}
