//! temporary
fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut options = kv_lab::demo::DemoOptions::new(std::env::args().nth(1).unwrap());
    options.port_base = 27100;
    match runtime.block_on(kv_lab::demo::run(options)) {
        Ok(outcome) => std::process::exit(i32::from(!outcome.broken.is_empty())),
        Err(error) => {
            eprintln!("error: {error}");
            std::process::exit(error.exit_code().into())
        }
    }
}
