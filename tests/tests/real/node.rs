//! node on a Unix path, which it unlinks when its server closes.

use master_process_tests::{fixtures, load};

use crate::network::needs;
use crate::run::{serves_and_reloads, text_of};

#[test]
fn two_node_servers_on_one_unix_path_lose_no_request_in_six_reloads() {
    needs!("two_node_servers_on_one_unix_path_lose_no_request_in_six_reloads", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("node.sock");
    let mut command = vec!["env".to_owned(), format!("LISTEN={}", text_of(&path))];
    command.extend(fixtures::node("graceful.js"));
    serves_and_reloads(2, 6, &command, &move || load::get(path.as_path(), "/"));
}
