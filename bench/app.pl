# The Perl workload: hashes, regular expressions, sorting, string building, calls.
use strict;
use warnings;

my $seed = 42;
sub rnd { return $seed = ($seed * 1103515245 + 12345) % 2147483648 }

my %count;
my @lines;
for my $i (1 .. 25000) {
	my $line = sprintf "%s-%d: user%d GET /path/%d?q=%x", $i % 2 ? 'a' : 'b', $i, rnd() % 100, rnd() % 50, rnd();
	push @lines, $line;
}
for (@lines) {
	$count{$1}{$2}++ if m{^\w-\d+: (user\d+) GET (/path/\d+)\?q=([0-9a-f]*7[0-9a-f]*)$};
}
my $out = '';
for my $user (sort keys %count) {
	my $paths = $count{$user};
	$out .= join(',', map { "$_=$paths->{$_}" } sort { $paths->{$b} <=> $paths->{$a} || $a cmp $b } keys %$paths) . "\n";
}
my @sorted = sort { $a <=> $b } map { rnd() } 1 .. 30000;
sub ack { my ($m, $n) = @_; return $m ? ack($m - 1, $n ? ack($m, $n - 1) : 1) : $n + 1 }
{ no warnings 'recursion'; $out .= ack(2, 60) }
(my $swapped = $out) =~ tr/a-y/b-z/;
my $sum = 0;
$sum = ($sum * 31 + ord) % 1000000007 for split //, substr($swapped, 0, 60000);
print "$sum $sorted[0] $sorted[15000] ", length $out, "\n";
