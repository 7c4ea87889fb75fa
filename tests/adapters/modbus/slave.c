/* A Modbus slave on libmodbus, for the tests: slave tcp PORT UNIT, or slave rtu PATH UNIT.
 *
 * A line "di 3 1" on its input sets discrete input 3 (also co, ir, hr; several values may follow); each
 * line is answered by "ok". Its tables have 64 entries each. */
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>

#define ENTRIES 64

static modbus_mapping_t *tables;

static void obey(char *line)
{
    char *table = strtok(line, " \n"), *word = strtok(NULL, " \n");
    int at = word ? atoi(word) : ENTRIES;
    while (table && (word = strtok(NULL, " \n")) && at < ENTRIES) {
        int value = atoi(word);
        if (!strcmp(table, "co")) tables->tab_bits[at] = value;
        if (!strcmp(table, "di")) tables->tab_input_bits[at] = value;
        if (!strcmp(table, "ir")) tables->tab_input_registers[at] = value;
        if (!strcmp(table, "hr")) tables->tab_registers[at] = value;
        at++;
    }
    puts("ok");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    char line[512];
    int tcp, listening = -1;
    modbus_t *context;
    fd_set open;

    if (argc != 4) return 2;
    tcp = !strcmp(argv[1], "tcp");
    context = tcp ? modbus_new_tcp("127.0.0.1", atoi(argv[2])) : modbus_new_rtu(argv[2], 19200, 'N', 8, 1);
    tables = modbus_mapping_new(ENTRIES, ENTRIES, ENTRIES, ENTRIES);
    if (!context || !tables || modbus_set_slave(context, atoi(argv[3])) == -1) return 1;
    if (tcp && (listening = modbus_tcp_listen(context, 4)) == -1) return 1;
    if (!tcp && modbus_connect(context) == -1) return 1;
    FD_ZERO(&open);
    FD_SET(STDIN_FILENO, &open);
    FD_SET(tcp ? listening : modbus_get_socket(context), &open);
    puts("ready");
    fflush(stdout);
    for (;;) {
        fd_set ready = open;
        int each, count;
        if (select(FD_SETSIZE, &ready, NULL, NULL, NULL) == -1) return 1;
        for (each = 0; each < FD_SETSIZE; each++) {
            if (!FD_ISSET(each, &ready)) continue;
            if (each == STDIN_FILENO) {
                if (!fgets(line, sizeof line, stdin)) return 0;
                obey(line);
            } else if (each == listening) {
                if ((each = modbus_tcp_accept(context, &listening)) == -1) return 1;
                FD_SET(each, &open);
                break;
            } else {
                modbus_set_socket(context, each);
                count = modbus_receive(context, query);
                if (count > 0) {
                    modbus_reply(context, query, count, tables);
                } else if (count == -1 && tcp) {
                    close(each);
                    FD_CLR(each, &open);
                }
            }
        }
    }
}
