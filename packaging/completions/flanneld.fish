# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_flanneld_global_optspecs
    string join \n etcd-endpoints= etcd-prefix= etcd-cafile= etcd-certfile= etcd-keyfile= etcd-username= etcd-password-file= etcd-password= iface= iface-regex= iface-can-reach= public-ip= subnet-lease-ttl= subnet-lease-renew-margin= release-lease-on-exit= peer-hold= subnet-file= docker-opts-file= state-dir= healthz-ip= healthz-port= v= ip-masq= ip-masq-fully-random-disable= iptables-forward-rules= iptables-docker-user-rules= iptables-resync= ip-blackhole-route= vxlan-tx-checksum-off= h/help V/version
end

function __fish_flanneld_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_flanneld_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_flanneld_using_subcommand
    set -l cmd (__fish_flanneld_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c flanneld -n "__fish_flanneld_needs_command" -l etcd-endpoints -d 'Endpoints of etcd: http://HOST:PORT or https://HOST:PORT, separated by commas [default: http://127.0.0.1:4001,http://127.0.0.1:2379]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l etcd-prefix -d 'Prefix of all keys: the config is at KEY/config, the leases are below KEY/subnets/ [default: /coreos.com/network]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l etcd-cafile -d 'CA certificates in PEM form that etcd\'s certificate must be signed by, for https:// [default: those of the system]' -r -F
complete -c flanneld -n "__fish_flanneld_needs_command" -l etcd-certfile -d 'Client certificate in PEM form, if etcd asks for one; read again when it changes' -r -F
complete -c flanneld -n "__fish_flanneld_needs_command" -l etcd-keyfile -d 'Key of the client certificate in PEM form, unencrypted' -r -F
complete -c flanneld -n "__fish_flanneld_needs_command" -l etcd-username -d 'User of etcd, if it has authentication enabled' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l etcd-password-file -d 'File that holds the user\'s password and nothing else but a newline; read again when etcd refuses it' -r -F
complete -c flanneld -n "__fish_flanneld_needs_command" -l etcd-password -d 'The password itself. Every user of this host can see it; prefer --etcd-password-file' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l iface -d 'Interface to reach the other hosts through, by name or address; may be given several times, the first match is used [default: the interface of the default route]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l iface-regex -d 'As --iface, but a pattern for its address or its name; tried after --iface' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l iface-can-reach -d 'Use the interface that the kernel routes IP to; tried last' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l public-ip -d 'Address that the other hosts send to [default: the interface\'s own address]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l subnet-lease-ttl -d 'How long the subnet stays reserved for this host after the last renewal: 2s to 30days [default: 24h]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l subnet-lease-renew-margin -d 'How long before its expiry the lease is renewed, in minutes or with a unit. If the flag is not given and the TTL is at most 24h: a third of the TTL [default: 60]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l release-lease-on-exit -d 'Give the subnet back on SIGTERM and SIGINT: the other hosts remove their routes to it at once, and any host may take it [default: false]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l peer-hold -d 'How long to keep the routes to hosts whose leases disappeared although the hosts did not leave, for example because etcd was wiped; 0s keeps none [default: the TTL of the lease]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l subnet-file -d 'Where to write FLANNEL_SUBNET, FLANNEL_MTU and the like [default: /run/flannel/subnet.env]' -r -F
complete -c flanneld -n "__fish_flanneld_needs_command" -l docker-opts-file -d 'Where to write Docker\'s options, DOCKER_OPT_BIP and the like; empty for nowhere [default: /run/docker_opts.env]' -r -F
complete -c flanneld -n "__fish_flanneld_needs_command" -l state-dir -d 'Where to remember the MAC address and the lease between runs. If the flag is not given, systemd\'s $STATE_DIRECTORY is used before the default [default: /var/lib/flannel]' -r -f -a "(__fish_complete_directories)"
complete -c flanneld -n "__fish_flanneld_needs_command" -l healthz-ip -d 'Address to serve /healthz and /readyz on [default: 0.0.0.0]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l healthz-port -d 'Port to serve /healthz and /readyz on; 0 serves none [default: 0]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -s v -d 'How much to log: 0 for normal operation, 1 to 4 for debugging, 5 and more for everything [default: 0]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l ip-masq -d 'Masquerade packets that leave the overlay; Docker is then configured not to [default: false]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l ip-masq-fully-random-disable -d 'Do not choose the source ports of such packets at random [default: false]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l iptables-forward-rules -d 'Accept packets from and to the overlay in the FORWARD chain [default: true]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l iptables-docker-user-rules -d 'Accept packets from other hosts to this host\'s containers in Docker\'s chain DOCKER-USER, behind your own rules there: Docker 28 and later otherwise drop packets to ports that are not published [default: false]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l iptables-resync -d 'How often to check the rules if the kernel does not report changes to them [default: 5]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l ip-blackhole-route -d 'Drop packets to unused addresses of this host\'s subnet, by a blackhole route that matches after all others [default: false]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -l vxlan-tx-checksum-off -d 'Let the CPU compute the checksums of packets before they reach the VXLAN device (ethtool\'s tx-checksum-ip-generic off): a workaround for NICs, drivers and hypervisors that send wrong ones, at the price of most of the throughput [default: false]' -r -f
complete -c flanneld -n "__fish_flanneld_needs_command" -s h -l help -d 'Print this text'
complete -c flanneld -n "__fish_flanneld_needs_command" -s V -l version -d 'Print the version'
complete -c flanneld -n "__fish_flanneld_needs_command" -f -a "docker-opts" -d 'Write a file with Docker\'s options for the subnet that flanneld gave this host'
complete -c flanneld -n "__fish_flanneld_using_subcommand docker-opts" -s f -d 'The file to read, which flanneld writes: its --subnet-file' -r -F
complete -c flanneld -n "__fish_flanneld_using_subcommand docker-opts" -s d -d 'The file to write; /dev/stdout only shows what would be in it' -r -F
complete -c flanneld -n "__fish_flanneld_using_subcommand docker-opts" -s k -d 'The name of the variable with all options' -r
complete -c flanneld -n "__fish_flanneld_using_subcommand docker-opts" -s i -d 'Write a variable for each option, such as DOCKER_OPT_MTU="--mtu=1450"'
complete -c flanneld -n "__fish_flanneld_using_subcommand docker-opts" -s c -d 'Write one variable with all options'
complete -c flanneld -n "__fish_flanneld_using_subcommand docker-opts" -s m -d 'Leave out --ip-masq, for a Docker so old that it does not know it'
complete -c flanneld -n "__fish_flanneld_using_subcommand docker-opts" -s h -l help -d 'Print help'
