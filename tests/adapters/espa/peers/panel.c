/* A fire panel that pages by ESPA 4.4.4, written from the standard alone (clauses 2 to 4, "Proposal for serial
   data interface for paging equipment", November 1984): control station with address 1, which polls itself and
   selects the paging system, 2.

   panel TTY TEXT PRIORITY [bad]      `bad`: the first block has a wrong BCC, and is sent again after the NAK.
   Prints the answers as hex; exit code 0 if the call was acknowledged. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

enum { SOH = 1, STX = 2, ETX = 3, EOT = 4, ENQ = 5, ACK = 6, NAK = 21, RS = 30, US = 31 };

static int tty;

static int answer(void) {
    struct pollfd line = {tty, POLLIN, 0};
    unsigned char byte;
    if (poll(&line, 1, 5000) != 1 || read(tty, &byte, 1) != 1)
        return -1;
    printf("%02x ", byte);
    if (byte >= '0' && byte <= '9') /* a prefix, 2.4 */
        return answer();
    return byte;
}

static void say(const void *data, size_t size) {
    if (write(tty, data, size) != (ssize_t)size)
        perror("write");
}

static void block(const char *text, const char *priority, int bad) {
    char data[512];
    unsigned char bcc = 0;
    int size = sprintf(data, "%c1%c1%c%s%c2%c%s%c3%c%s%c4%c3%c6%c%s%c", SOH, STX, US, "550", RS, US, text, RS, US,
                       "3", RS, US, RS, US, priority, ETX);
    for (int place = 1; place < size; place++) /* without the SOH, 4.1 */
        bcc ^= (unsigned char)data[place];
    data[size++] = (char)(bad ? bcc ^ 1 : bcc);
    say(data, (size_t)size);
}

int main(int count, char **words) {
    struct termios settings;
    const unsigned char poll_and_select[] = {EOT, '1', ENQ, '2', ENQ}, end = EOT;
    int bad = count > 4 && !strcmp(words[4], "bad"), said;
    tty = open(words[1], O_RDWR | O_NOCTTY);
    if (tty < 0 || tcgetattr(tty, &settings))
        return 2;
    cfmakeraw(&settings);
    settings.c_cflag = (settings.c_cflag & ~(tcflag_t)CSIZE) | CS7 | PARENB | CSTOPB | CREAD | CLOCAL;
    cfsetspeed(&settings, B9600);
    tcsetattr(tty, TCSANOW, &settings);
    say(poll_and_select, sizeof poll_and_select);
    if (answer() != ACK)
        return 1;
    do {
        block(words[2], words[3], bad);
        said = answer();
    } while (bad-- && said == NAK);
    say(&end, 1);
    tcdrain(tty);
    return said == ACK ? 0 : 1;
}
