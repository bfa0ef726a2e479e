//! puma on a Unix path. Before it binds, it connects to the path, and gives up when another instance answers.

use master_process_tests::load;

use crate::network::{needs, path_of};
use crate::run::{serves_and_reloads, text_of, words, write};

fn puma(workers: usize) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let app = "run ->(_) { b = Process.pid.to_s; [200, { 'content-length' => b.size.to_s }, [b]] }\n";
    let app = write(folder.path(), "config.ru", app);
    let path = folder.path().join("puma.sock");
    let mut command = vec![path_of("puma")];
    command.extend(words(&format!(
        "--quiet --environment production --threads 2:4 -b unix://{}",
        text_of(&path)
    )));
    command.push(app);
    serves_and_reloads(workers, 4, &command, &move || load::get(path.as_path(), "/"));
}

#[test]
fn one_puma_on_a_unix_path_loses_no_request_in_four_reloads() {
    needs!("one_puma_on_a_unix_path_loses_no_request_in_four_reloads", "puma");
    puma(1);
}

#[test]
fn two_puma_on_one_unix_path_lose_no_request_in_four_reloads() {
    needs!("two_puma_on_one_unix_path_lose_no_request_in_four_reloads", "puma");
    puma(2);
}
