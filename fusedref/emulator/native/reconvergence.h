// The order in which the parts of a warp run. A card lets lanes that a branch has separated reconverge as soon as their
// paths join, whether they left a loop early, went on to its next round or took different branches. To do the same,
// run those lanes first that are furthest behind in the code. The order of the code comes from a graph of all steps that
// lanes took, in this warp or another: a loop is contiguous; what follows it, and the step back to its head, come after
// the whole loop.
#pragma once
#include "runtime.h"

namespace emu {

template <class T> struct List {
    T* items;
    uint32_t count, room;
    void add(const T& item) {
        if (count == room) {
            items = (T*)resize(items, (room ? 2 * room : 256) * sizeof(T));
            room = room ? 2 * room : 256;
        }
        items[count++] = item;
    }
    T& operator[](uint32_t i) { return items[i]; }
};

struct ReconvergenceOrder {
    static constexpr uint32_t BEGIN = 0, NONE = ~0u;
    enum State { UNSEEN, ON_PATH, DONE };
    struct Node {  // a basic block or an access
        uint64_t pc;
        uint32_t out, in;           // its first edges
        uint32_t after;             // its first constraint
        uint32_t next, next_after;  // of the search: what to visit next
        uint32_t position;          // in the order
        uint32_t loop;              // the head of the last loop collected with this node
        uint32_t last;              // the last position in the loop that this node heads
        State state;
    };
    struct Edge {  // a step from one to another
        uint32_t from, to, next_out, next_in;
        bool back;       // to the head of a loop that it is in
        uint64_t order;  // of the step among all
    };
    struct Constraint {  // orders the end of a loop before what follows the loop
        uint32_t to, next;
    };
    List<Node> nodes;
    List<Edge> edges;
    List<Constraint> constraints;
    List<uint32_t> table, path;  // the nodes by pc; the search's stack
    uint32_t ordered;            // edges that have an order

    uint32_t node(uint64_t pc) {
        if (!nodes.count) add_node(0);  // BEGIN
        if (2 * nodes.count >= table.count) {
            for (uint32_t more = table.count ? table.count : 256; more; more--) table.add(NONE);
            for (uint32_t i = 0; i < table.count; i++) table[i] = NONE;
            for (uint32_t n = 1; n < nodes.count; n++) table[slot(nodes[n].pc)] = n;
        }
        uint32_t at = slot(pc);
        if (table[at] == NONE) {
            table[at] = nodes.count;
            add_node(pc);
        }
        return table[at];
    }

    uint32_t edge(uint32_t from, uint32_t to) {
        uint32_t e = nodes[from].out;
        while (e != NONE && edges[e].to != to) e = edges[e].next_out;
        if (e != NONE) return e;
        edges.add(Edge{from, to, nodes[from].out, nodes[to].in, false, 0});
        return nodes[from].out = nodes[to].in = edges.count - 1;
    }

    // Sets `Edge::order`. Call it after all nodes and edges have been added.
    void find_order() {
        if (ordered == edges.count) return;
        constraints.count = 0;
        for (uint32_t n = 0; n < nodes.count; n++) {
            nodes[n].after = nodes[n].loop = NONE;
            nodes[n].last = 0;
        }
        for (uint32_t e = 0; e < edges.count; e++) edges[e].back = false;
        search();
        for (uint32_t e = 0; e < edges.count; e++)
            if (edges[e].back && nodes[edges[e].to].loop != edges[e].to) close_loop(edges[e].to);
        search();
        for (uint32_t e = 0; e < edges.count; e++)
            if (edges[e].back && nodes[edges[e].from].position > nodes[edges[e].to].last)
                nodes[edges[e].to].last = nodes[edges[e].from].position;
        for (uint32_t e = 0; e < edges.count; e++) {
            const Node& to = nodes[edges[e].to];
            // Of two loops that end at the same position the inner one, which begins later, goes on first.
            edges[e].order =
                edges[e].back ? (2ull * to.last + 1) << 32 | (nodes.count - to.position) : 2ull * to.position << 32;
        }
        ordered = edges.count;
    }

    void free_all() {
        release(nodes.items);
        release(edges.items);
        release(constraints.items);
        release(table.items);
        release(path.items);
        *this = ReconvergenceOrder{};
    }

private:
    uint32_t slot(uint64_t pc) {
        uint32_t at = (pc * 0x9E3779B97F4A7C15ull >> 32) % table.count;
        while (table[at] != NONE && nodes[table[at]].pc != pc) at = (at + 1) % table.count;
        return at;
    }

    void add_node(uint64_t pc) { nodes.add(Node{pc, NONE, NONE, NONE, NONE, NONE, 0, NONE, 0, UNSEEN}); }

    // Depth first from BEGIN: finds the edges that lead back, and gives each node a position after all that lead to it.
    void search() {
        for (uint32_t n = 0; n < nodes.count; n++) nodes[n].state = UNSEEN;
        uint32_t position = nodes.count;
        enter(BEGIN);
        while (path.count) {
            Node& n = nodes[path[path.count - 1]];
            uint32_t to;
            if (n.next != NONE) {
                Edge& e = edges[n.next];
                n.next = e.next_out;
                to = e.to;
                e.back |= nodes[to].state == ON_PATH;
            } else if (n.next_after != NONE) {
                to = constraints[n.next_after].to;
                n.next_after = constraints[n.next_after].next;
            } else {
                n.state = DONE;
                n.position = --position;
                path.count--;
                continue;
            }
            if (nodes[to].state == UNSEEN) enter(to);
        }
    }

    void enter(uint32_t n) {
        nodes[n].state = ON_PATH;
        nodes[n].next = nodes[n].out;
        nodes[n].next_after = nodes[n].after;
        path.add(n);
    }

    // Collects the nodes of the loop that begins at `head`, and orders its ends before everything that follows the loop.
    void close_loop(uint32_t head) {
        collect(head, head);
        for (uint32_t e = nodes[head].in; e != NONE; e = edges[e].next_in)
            if (edges[e].back) collect(edges[e].from, head);
        for (uint32_t i = 1; i < path.count; i++)
            for (uint32_t e = nodes[path[i]].in; e != NONE; e = edges[e].next_in) collect(edges[e].from, head);
        for (uint32_t i = 0; i < path.count; i++)
            for (uint32_t e = nodes[path[i]].out; e != NONE; e = edges[e].next_out)
                if (nodes[edges[e].to].loop != head)
                    for (uint32_t b = nodes[head].in; b != NONE; b = edges[b].next_in)
                        if (edges[b].back) constrain(edges[b].from, edges[e].to);
        path.count = 0;
    }

    void constrain(uint32_t end, uint32_t follower) {
        constraints.add(Constraint{follower, nodes[end].after});
        nodes[end].after = constraints.count - 1;
    }

    void collect(uint32_t n, uint32_t head) {
        if (nodes[n].loop == head) return;
        nodes[n].loop = head;
        path.add(n);
    }
};

}  // namespace emu
