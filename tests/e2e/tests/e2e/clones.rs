//! Two processes with one identity: the newest wins, the other says what happened, and nothing flaps.

use std::time::Duration;

use anyhow::Result;
use culvert_lab::{Connector, wait};

#[tokio::test]
async fn a_clone_of_a_state_directory_is_named_and_harmless() -> Result<()> {
    let mut setup = crate::Setup::new().await?;
    let mut clone = Connector::new("", &[&format!("orders={}", setup.origin.url())])?;
    clone.env.clear();
    let copied = std::process::Command::new("cp").arg("-a").arg(setup.connector.state()).arg(clone.state()).status()?;
    assert!(copied.success());
    clone.launch()?;
    let told = wait::until("somebody to notice", Duration::from_secs(20), || async {
        let said = setup.connector.output() + &clone.output();
        said.contains("another process uses this key").then_some(())
    })
    .await;
    assert!(told.is_ok(), "original:\n{}\nclone:\n{}", setup.connector.output(), clone.output());
    setup.relay.pairs_up("orders", 1).await?;
    // The newest one serves, and goes on serving.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let answer = setup.relay.get("orders", "/").await?;
        assert_eq!(answer.status, 200, "{} {}", answer.header("proxy-status"), setup.relay.last_words());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let displaced =
        setup.connector.output().matches("another process").count() + clone.output().matches("another process").count();
    assert!(displaced <= 3, "they displace each other over and over: {displaced}");
    assert_eq!(setup.relay.json(&["connector", "list"]).await?.as_array().map(Vec::len), Some(1));
    assert!(setup.connector.process()?.runs() && clone.process()?.runs());
    Ok(())
}
