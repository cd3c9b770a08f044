# Completion of vixen for fish.
complete -c vixen -n __fish_use_subcommand -f -a 'run\t"start a virtual machine" list\t"machines that run" status\t"describe one" stop\t"shut one down" pause\t"stop its CPUs" resume\t"let them go on" image\t"guest images" doctor\t"what this host offers" help version'
complete -c vixen -l help -d 'Explain'

set -l run '__fish_seen_subcommand_from run'
complete -c vixen -n $run -x -l name -d 'What the machine is called'
complete -c vixen -n $run -x -l engine -a 'auto soft kvm' -d 'How guest code is run'
complete -c vixen -n $run -x -l cpu -a 'x86-64-v2 x86-64-v3 host' -d 'CPU model'
complete -c vixen -n $run -x -l cpus -d 'Virtual CPUs'
complete -c vixen -n $run -x -l memory -d 'Memory'
complete -c vixen -n $run -r -l kernel -d 'Kernel to boot'
complete -c vixen -n $run -r -l initrd -d 'Initial RAM disk'
complete -c vixen -n $run -x -l append -d 'Kernel command line'
complete -c vixen -n $run -r -l firmware -a 'bios uefi' -d 'Boot through firmware'
complete -c vixen -n $run -r -l disk -d 'A disk'
complete -c vixen -n $run -r -l cdrom -d 'A read-only disk'
complete -c vixen -n $run -x -l net -a 'user none' -d 'Network card'
complete -c vixen -n $run -r -l console -a 'stdio none file:' -d 'First serial port'
complete -c vixen -n $run -f -l no-reboot -d 'End when the guest resets'
complete -c vixen -n $run -x -l gdb -a '1234 unix:' -d 'Wait for GDB'
complete -c vixen -n $run -f -l counters -d 'Say at the end what each CPU did'
complete -c vixen -n $run -x -l format -a 'table json' -d 'How counters are printed'
complete -c vixen -n $run -f -l trace -d 'Write each instruction'
complete -c vixen -n $run -f -l perf-map -d 'Name translated code for perf'
complete -c vixen -n $run -f -l interpret -d 'Interpret only'

set -l image '__fish_seen_subcommand_from image'
complete -c vixen -n "$image; and not __fish_seen_subcommand_from build list info" -f -a 'build list info'
set -l build "$image; and __fish_seen_subcommand_from build"
complete -c vixen -n $build -f -a debian-12
complete -c vixen -n $build -x -l name -d 'What the image is called'
complete -c vixen -n $build -x -l arch -a 'amd64 i386' -d 'Which Debian'
complete -c vixen -n $build -x -l kernel-package -d Kernel
complete -c vixen -n $build -x -l size -d 'Size of the disk'
complete -c vixen -n $build -x -l include -d 'More packages'
complete -c vixen -n $build -x -l mirror -d 'Where packages come from'
complete -c vixen -n $build -f -l force -d 'Build again'
complete -c vixen -n '__fish_seen_subcommand_from list status doctor' -x -l format -a 'table json' -d Output
complete -c vixen -n '__fish_seen_subcommand_from status stop pause resume' -f -a "(vixen list 2>/dev/null | tail -n +2 | string replace -r ' .*' '')"
complete -c vixen -n '__fish_seen_subcommand_from stop' -f -l now -d 'Do not ask the guest'
complete -c vixen -n '__fish_seen_subcommand_from stop' -x -l timeout -d 'How long it may take'
