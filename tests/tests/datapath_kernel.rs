//! The datapath's cases through `BPF_PROG_TEST_RUN`: the same verdicts, bytes and counters.

use shoal_tests::testbed::{Hook, cases, check, kernel, sizes};

fn check_hook(hook: Hook) {
    if let Some(why) = kernel::why_not() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let (cases, refused): (Vec<_>, Vec<_>) =
        cases::all().into_iter().filter(|case| case.hook == hook).partition(kernel::takes);
    let mut loaded = kernel::Loaded::new(true, 1024).expect("the maps can be created");
    check(&cases, |case| match kernel::run(&mut loaded, case) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{:?}: {}: {error:?}", case.hook, case.name),
    });
    eprintln!("{} cases ran in the kernel", cases.len());
    for case in refused {
        eprintln!("the kernel takes no such packet: {}", case.name);
    }
}

#[test]
fn ingress_xdp_does_in_the_kernel_what_it_does_on_the_host() {
    check_hook(Hook::IngressXdp);
}

#[test]
fn ingress_tc_does_in_the_kernel_what_it_does_on_the_host() {
    check_hook(Hook::IngressTc);
}

#[test]
fn mesh_tc_does_in_the_kernel_what_it_does_on_the_host() {
    check_hook(Hook::MeshTc);
}

#[test]
fn task_tc_does_in_the_kernel_what_it_does_on_the_host() {
    check_hook(Hook::TaskTc);
}

#[test]
fn no_program_grew_by_more_than_a_fifth() {
    if let Some(why) = kernel::why_not() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let (committed, here) = (sizes::committed().unwrap(), sizes::measure().unwrap());
    if committed.kernel != here.kernel {
        eprintln!("SKIPPED: ebpf/sizes.toml is of Linux {}", committed.kernel);
        return;
    }
    assert_eq!(sizes::growth(&committed, &here), Vec::<String>::new());
}
