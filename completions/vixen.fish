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
set -l commands build create list info clone convert compare map resize check snapshot commit rebase
complete -c vixen -n "$image; and not __fish_seen_subcommand_from $commands" -f -a "$commands"
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
set -l create "$image; and __fish_seen_subcommand_from create"
complete -c vixen -n $create -x -l disk-format -a 'raw qcow2' -d 'Of the new disk'
complete -c vixen -n $create -r -l backing -d 'What it starts as'
complete -c vixen -n $create -x -l backing-format -a 'raw qcow2' -d 'Of that file'
complete -c vixen -n $create -x -l cluster-size -d 'Unit of allocation'
complete -c vixen -n $create -x -l compression -a 'zlib zstd' -d 'Of compressed clusters'
complete -c vixen -n $create -l extended-l2 -d 'Allocate 32nds of clusters'
complete -c vixen -n $create -l lazy-refcounts -d 'Count references at the end'
complete -c vixen -n $create -x -l refcount-bits -a '1 2 4 8 16 32 64' -d 'Width of counts'
complete -c vixen -n $create -r -l data-file -d 'Put the data there'
complete -c vixen -n $create -l force -d 'Replace the file'
set -l disk "$image; and __fish_seen_subcommand_from"
complete -c vixen -n "$disk info map check snapshot compare" -x -l format -a 'table json' -d Output
complete -c vixen -n "$disk info map check snapshot clone resize commit rebase" -x -l disk-format -a 'raw qcow2' -d 'Format of the file'
complete -c vixen -n "$disk clone" -x -l size -d 'Of the new disk'
complete -c vixen -n "$disk convert" -x -l from -a 'raw qcow2' -d 'Format of the source'
complete -c vixen -n "$disk convert" -x -l to -a 'raw qcow2' -d 'Format of the copy'
complete -c vixen -n "$disk convert" -l compress -d 'Compress the data'
complete -c vixen -n "$disk convert" -x -l compression -a 'zlib zstd' -d How
complete -c vixen -n "$disk convert" -x -l cluster-size -d 'Unit of allocation'
complete -c vixen -n "$disk convert" -x -l sparse -d 'Zeroes that take no space'
complete -c vixen -n "$disk convert" -x -l parallel -d 'Pieces under way'
complete -c vixen -n "$disk convert" -l force -d 'Replace the file'
complete -c vixen -n "$disk compare" -x -l format-a -a 'raw qcow2' -d 'Format of the first'
complete -c vixen -n "$disk compare" -x -l format-b -a 'raw qcow2' -d 'Format of the second'
complete -c vixen -n "$disk resize" -l shrink -d 'It may get smaller'
complete -c vixen -n "$disk check" -x -l repair -a 'leaks all' -d 'Mend it'
complete -c vixen -n "$disk snapshot" -f -a 'create list apply delete'
complete -c vixen -n "$disk rebase" -r -l backing -d 'New backing file'
complete -c vixen -n "$disk rebase" -x -l backing-format -a 'raw qcow2' -d 'Its format'
complete -c vixen -n "$disk rebase" -l no-backing -d 'Copy all in'
complete -c vixen -n "$disk rebase" -l unsafe -d 'Change the name only'
