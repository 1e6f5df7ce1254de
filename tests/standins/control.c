#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct counts counts;

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

long counted(long result, uint64_t length)
{
	counts.calls++;
	counts.call_bytes += length;
	counts.failed += result < 0;
	return result;
}

struct part *part_at(struct part *parts, int count, uint64_t gpa, uint64_t length)
{
	for (int i = 0; i < count; i++) {
		uint64_t offset = gpa - parts[i].gpa;

		if (gpa >= parts[i].gpa && offset < parts[i].length && parts[i].length - offset >= length)
			return &parts[i];
	}
	return NULL;
}

uint64_t parse_size(const char *text, uint64_t unit)
{
	char *end;
	uint64_t value = strtoull(text, &end, 0);

	switch (*end | 0x20) {
	case 'k': return value << 10;
	case 'm': return value << 20;
	case 'g': return value << 30;
	case 't': return value << 40;
	default: return value * unit;
	}
}

static void print_ready(const struct part *parts, int part_count)
{
	printf("{\"ready\": true, \"pid\": %d, \"parts\": [", getpid());
	for (int i = 0; i < part_count; i++) {
		const struct part *part = &parts[i];

		printf("%s{\"name\": \"%s\", \"gpa\": %lu, \"hva\": %lu, \"length_bytes\": %lu, "
		       "\"backing\": \"%s\", \"page_size_bytes\": %lu, \"file_offset_bytes\": ",
		       i ? ", " : "", part->name, part->gpa, (uint64_t)part->host, part->length,
		       part->backing, part->page_size);
		printf(part->fd < 0 ? "null}" : "%lu}", part->fd_offset);
	}
	printf("]}\n");
	fflush(stdout);
}

static void reply(const char *command)
{
	printf("{\"command\": \"%s\", \"requests\": %lu, \"pages\": %lu, \"rejected\": %lu, "
	       "\"calls\": %lu, \"failed\": %lu, \"call_bytes\": %lu, \"noise\": %lu}\n",
	       command, counts.requests, counts.pages, counts.rejected, counts.calls, counts.failed,
	       counts.call_bytes, counts.noise);
	fflush(stdout);
	memset(&counts, 0, sizeof(counts));
}

static void run(const struct command *commands, char *line)
{
	static uint64_t arguments[MAX_ARGUMENTS];
	char *name = strtok(line, " \n"), *word;
	int count = 0;

	while ((word = strtok(NULL, " \n")) && count < MAX_ARGUMENTS)
		arguments[count++] = parse_size(word, 1);
	for (const struct command *command = commands; name && command->name; command++) {
		if (!strcmp(command->name, name) && count >= command->least_arguments) {
			command->run(count, arguments);
			reply(name);
			return;
		}
	}
	printf("{\"error\": \"unknown command or too few arguments\"}\n");
	fflush(stdout);
}

int serve(const struct command *commands, const struct part *parts, int part_count)
{
	char *line = NULL;
	size_t size = 0;

	print_ready(parts, part_count);
	while (getline(&line, &size, stdin) > 0 && strcmp(line, "quit\n"))
		run(commands, line);
	free(line);
	return 0;
}
